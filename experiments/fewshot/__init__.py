"""Few samples a class: a solved head, and a second stage judged with what the head has seen, beside tuned training."""
