"""How often gates open without a signal and stay shut before one, and what each known mistake does to that."""
