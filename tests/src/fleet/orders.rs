//! What a fleet says of itself, and what it is told.
