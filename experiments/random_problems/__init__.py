"""Random small training problems by number, the runs that solve them, and a file of what is done."""
