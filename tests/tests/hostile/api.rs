//! A user keeps the API and the metrics page busy.
