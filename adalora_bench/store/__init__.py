"""Results as facts on disk: records, their schema, leases, atomic files, the machine they were made on."""
