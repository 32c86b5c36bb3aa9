"""One module per page: each reads what it shows from hived, and lists its addresses in `routes`."""
