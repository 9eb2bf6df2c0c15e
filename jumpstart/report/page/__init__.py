"""One file to look at: charts that can be switched, tables under them, nothing from the network."""
