//! Oblivious transfer: base OTs on Ristretto and the IKNP extension.
