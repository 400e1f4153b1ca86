//! A worker's user rearranges the folder of its logs.
