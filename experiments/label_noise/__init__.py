"""Wrong labels: what gates, slower clocks and averages keep out of a network that is trained to the end."""
