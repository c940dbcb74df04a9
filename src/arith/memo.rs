//! What takes long to derive from public parameters and is asked for again and again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Most values that are kept; a program meets one or two dozen for each model and bucket.
const MOST: usize = 512;

/// Values by the text of the parameters that they follow from. Nothing secret may be a parameter.
pub(crate) struct Memo<T>(Mutex<Option<HashMap<String, T>>>);

impl<T: Clone> Memo<T> {
    /// An empty one, for a `static`.
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// The value for `key`: remembered, or `made` now. Threads that ask for a new key at the same time may each make it.
    pub fn get<E>(&self, key: String, make: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        // Single insertions leave nothing half done behind a panic.
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = lock().as_ref().and_then(|values| values.get(&key)) {
            return Ok(value.clone());
        }
        let value = make()?;
        let mut values = lock();
        let values = values.get_or_insert_with(HashMap::new);
        if values.len() >= MOST {
            values.clear();
        }
        values.insert(key, value.clone());
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_made_once_and_errors_not_kept() {
        static MEMO: Memo<u32> = Memo::new();
        assert_eq!(MEMO.get("a".into(), || Err("no")), Err("no"));
        assert_eq!(MEMO.get("a".into(), || Ok::<_, ()>(1)), Ok(1));
        assert_eq!(MEMO.get("a".into(), || Ok::<_, ()>(2)), Ok(1));
        assert_eq!(MEMO.get("b".into(), || Ok::<_, ()>(2)), Ok(2));
        for i in 0..2 * MOST as u32 {
            assert_eq!(MEMO.get(i.to_string(), || Ok::<_, ()>(i)), Ok(i));
        }
    }
}
