//! Files that are there whole or not at all.

use std::{
    io::Write,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::ReportError;

static WRITING: Mutex<()> = Mutex::new(());

/// Writes `bytes` to a temporary file in the same directory, makes it durable and renames it to `path`.
///
/// # Errors
/// [`ReportError::Write`]; `path` is then as it was.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    let _writing = pause();
    let failed = |source| ReportError::Write { path: path.to_path_buf(), source };
    let mut file = tempfile::Builder::new().prefix(".heliostat-").tempfile_in(directory(path)).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    #[cfg(unix)]
    {
        // Temporary files are for their owner's eyes only; a report is a file like any other.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(mode).map_err(failed)?;
    }
    file.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}

/// Finds out before the work whether a file can be written at its end: makes a temporary file beside `path` and removes it.
///
/// # Errors
/// [`ReportError::Write`].
pub fn check_writable(path: &Path) -> Result<(), ReportError> {
    let _writing = pause();
    let failed = |source| ReportError::Write { path: path.to_path_buf(), source };
    if path.is_dir() {
        return Err(failed(std::io::ErrorKind::IsADirectory.into()));
    }
    tempfile::Builder::new().prefix(".heliostat-").tempfile_in(directory(path)).map(drop).map_err(failed)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Waits until no file is being written, and keeps it so until the guard is dropped: before the process ends early, so that
/// no temporary file stays behind.
pub fn pause() -> MutexGuard<'static, ()> {
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        write_whole(&path, b"one").unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let absent = dir.path().join("absent/report.json");
        for result in [write_whole(&absent, b"x"), check_writable(&absent)] {
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with("cannot write") && error.contains("absent"), "{error}");
        }
        assert!(check_writable(dir.path()).is_err());
        check_writable(&dir.path().join("new")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
