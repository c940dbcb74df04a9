//! The offline phase: two lanes that run at the same time, HE and OT with garbling.

mod cots;
mod fill;
mod he_client;
mod he_server;
mod ot_client;
mod ot_server;
mod rows;

pub(super) use fill::turns as fill_turns;
pub use he_client::HeClient;
pub use he_server::HeServer;
pub use ot_client::OtClient;
pub(super) use ot_client::WINDOW as OT_WINDOW;
pub use ot_server::OtServer;

/// HE items on their way at once: the client encrypts the next ones while the server works on the first.
pub(super) const WINDOW: usize = 3;
