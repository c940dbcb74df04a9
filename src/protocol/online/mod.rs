//! The online phase, from the client's masked input to the opened output.

mod bilinear;
mod client;
mod server;

pub use bilinear::bilinear;
pub use client::OnlineClient;
pub use server::OnlineServer;
