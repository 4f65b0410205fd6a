"""What a session does with jobs, one room each: submit, wait, fetch; the session joins them."""
