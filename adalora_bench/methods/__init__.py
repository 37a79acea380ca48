"""One file per method, found by `_target_` in conf/method; nothing is registered."""
