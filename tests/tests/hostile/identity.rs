//! A user's process listens where a worker should.
