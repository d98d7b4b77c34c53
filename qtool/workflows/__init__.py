"""What each command does, without printing: a request goes in, a result comes out."""
