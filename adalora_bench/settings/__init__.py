"""From what was typed to a typed cell with its key; and what conf/table and conf/claim hold."""
