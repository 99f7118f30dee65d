//! Read-only memory maps.

use std::path::Path;

use memmap2::Mmap;

use crate::error::Result;

/// Maps a file for reading. An empty file gives an empty map.
///
/// The pages are shared with the page cache, so mapping a model costs no memory of its own.
///
/// # Safety of the contents
/// temper replaces files by renaming a new one over the old name ([`crate::atomic`]), which leaves
/// existing maps as they were. A foreign program that **shortens** the file in place while it is
/// mapped makes later reads of the lost part raise SIGBUS and end the process; nothing is read
/// beyond the length at the time of mapping.
///
/// # Errors
/// If the file cannot be opened or mapped; the message names the path.
pub fn map_file(path: impl AsRef<Path>) -> Result<Mmap> {
    let path = path.as_ref();
    let file = fs_err::File::open(path)?;
    #[expect(unsafe_code, reason = "a read-only map of a file that temper never changes in place")]
    // SAFETY: the map is read-only and files are replaced by rename, never written in place; see above.
    let map = unsafe { Mmap::map(file.file()) };
    map.map_err(|e| {
        std::io::Error::new(e.kind(), format!("{}: cannot be mapped: {e}", path.display())).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_shows_the_bytes_and_survives_replacement() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        crate::atomic::write_bytes(&path, "가나다 abc".as_bytes()).unwrap();
        let map = map_file(&path).unwrap();
        crate::atomic::write_bytes(&path, b"x").unwrap();
        assert_eq!(&map[..], "가나다 abc".as_bytes());
        assert_eq!(&map_file(&path).unwrap()[..], b"x");
    }

    #[test]
    fn an_empty_file_maps_to_nothing_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        crate::atomic::write_bytes(&path, b"").unwrap();
        assert!(map_file(&path).unwrap().is_empty());
        let missing = dir.path().join("none.safetensors");
        assert!(map_file(&missing).unwrap_err().to_string().contains("none.safetensors"));
    }
}
