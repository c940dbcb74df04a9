//! Channels that count bytes and rounds, framing, sessions.
