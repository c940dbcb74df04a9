//! The two-party protocol: offline and online phases as state machines without I/O.
