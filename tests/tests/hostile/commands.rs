//! A version that a worker reports, or a user types, is text and nothing else.
