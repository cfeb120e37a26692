//! Weights on disk: what is read from a checkpoint, and by what words a bad one is refused.

mod folder;
mod pickles;
mod reads;
mod refuses;
