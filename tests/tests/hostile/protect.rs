//! With `protect`, a user cannot even bind a worker's address.
