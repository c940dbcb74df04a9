//! Oblivious transfer: base OTs on Ristretto, their extension to correlated OTs by IKNP or silently (Ferret), pools of random
//! ones, and random 1-of-N OTs from those.
//!
//! All of it is for semi-honest parties and without I/O: functions consume and produce byte messages.
//!
//! ```text
//! COT receiver (evaluator)                      COT sender (garbler, holds delta)
//! BaseSender::new            -- A (32 B) -->
//!                            <-- B (4 KiB) --   CotSender::set_up
//! CotReceiver::set_up
//! CotReceiver::extend        -- U (16 B/OT) ->  CotSender::extend
//! t_j                                           q_j = t_j ^ choice_j * delta
//! ```
//!
//! Silent OT begins with [`CotReceiver::extend_random`]; after that nothing but 136 kB pass for every 796,364 OTs:
//! ```text
//!                            <-- step (0.17 B/OT)  FerretSender::extend
//! FerretReceiver::extend
//! CotReceiverPool: b_j, t_j                        CotSenderPool: q_j = t_j ^ b_j * delta
//! CotReceiverPool::choose    -- 1 bit/OT -->       CotSenderPool::correct     (for choices of one's own)
//! receiver_pads: r, pad_r                          sender_pads: pad_0 .. pad_{N-1}    (random 1-of-N OTs)
//! ```

pub mod base;
mod error;
mod ferret;
mod ggm;
pub mod iknp;
mod lpn;
mod pool;
mod random;
pub(crate) mod transpose;

pub use base::{BaseSender, receive as base_receive};
pub use error::OtError;
pub use ferret::{FerretReceiver, FerretSender, SilentPlan, SilentStep};
pub use iknp::{COLUMNS, CotReceiver, CotSender};
pub use lpn::LpnParams;
#[cfg(test)]
pub(crate) use pool::deal;
pub use pool::{CotReceiverPool, CotSenderPool, ReceiverCots};
pub use random::{PadShape, ReceiverPads, SenderPads, receiver_bits, receiver_pads, sender_bits, sender_pads};
