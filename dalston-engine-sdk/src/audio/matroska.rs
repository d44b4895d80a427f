//! Whether a Matroska or WebM file is complete.
//!
//! A browser writes a recording without lengths, so the end of its file is the end of the recording
//! if it is also the end of an element.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

/// Whether the last element ends with the file.
pub(super) fn is_complete(file: &File, length: u64) -> io::Result<bool> {
    let mut file = BufReader::new(file.try_clone()?);
    file.seek(SeekFrom::Start(0))?;
    let mut at = 0;
    while at < length {
        let Some((id, id_length)) = number(&mut file, false)? else {
            return Ok(false);
        };
        let Some((size, size_length)) = number(&mut file, true)? else {
            return Ok(false);
        };
        at += id_length + size_length;
        let is_unknown = size + 1 == 1 << (7 * size_length);
        if matches!(id, SEGMENT | CLUSTER) {
            if !is_unknown && at + size > length {
                return Ok(false);
            }
        } else if is_unknown {
            return Ok(false);
        } else {
            at = at.saturating_add(size);
            file.seek_relative(i64::try_from(size).unwrap_or(i64::MAX))?;
        }
    }
    Ok(at == length)
}

/// The elements whose content is visited.
const SEGMENT: u64 = 0x1853_8067;
const CLUSTER: u64 = 0x1f43_b675;

/// A number of variable length and its length, or `None` if it is invalid or cut off. The bit that
/// gives the length belongs to an id, but not to a size.
fn number(file: &mut impl Read, is_size: bool) -> io::Result<Option<(u64, u64)>> {
    let mut first = [0];
    if file.read(&mut first)? == 0 {
        return Ok(None);
    }
    let length = first[0].leading_zeros() as usize + 1;
    let mut rest = [0; 7];
    let Some(rest) = rest.get_mut(..length - 1) else {
        return Ok(None);
    };
    match file.read_exact(rest) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    let marker = if is_size { !(0x80 >> (length - 1)) } else { 0xff };
    let first = u64::from(first[0] & marker);
    let value = rest
        .iter()
        .fold(first, |value, byte| (value << 8) | u64::from(*byte));
    Ok(Some((value, length as u64)))
}
