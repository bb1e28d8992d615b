"""What a person at a terminal meets in every chat of ours: message input, Ctrl-C, options, one-line errors.

Used by backend's and client's command lines; imports nothing else of ours."""
