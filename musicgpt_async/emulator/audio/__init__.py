"""What renders stems: separation, or noise for load tests."""
