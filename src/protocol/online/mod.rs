//! The online phase, from the client's masked input to the opened output.

mod bilinear;
mod client;
mod server;
mod shared;

pub use bilinear::bilinear;
pub use client::OnlineClient;
pub use server::OnlineServer;
