//! What a roll's report says, against what the workers have written down; and each of its proofs, made to fail.

mod clean;
mod elsewhere;
mod fallbacks;
mod figures;
mod restart;
