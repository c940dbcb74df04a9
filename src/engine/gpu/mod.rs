//! The GPU backend.
mod preprocess;
mod shaders;
