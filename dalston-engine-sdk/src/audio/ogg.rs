//! The sound pages of an Ogg file.
//!
//! Symphonia skips a damaged page between others, but refuses a file with one before the first
//! samples. Such a file is read again without its damaged pages.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

/// The positions of the pages whose checksum is right.
pub(super) fn sound_pages(file: &mut (impl Read + Seek), length: u64) -> io::Result<Vec<Range<u64>>> {
    let mut pages: Vec<Range<u64>> = Vec::new();
    let mut page = Vec::new();
    let mut at = 0;
    while at + (HEADER as u64) <= length {
        page.clear();
        file.seek(SeekFrom::Start(at))?;
        file.by_ref().take(LONGEST as u64).read_to_end(&mut page)?;
        let Some(size) = sound_page(&page) else {
            let next = page.iter().skip(1).position(|byte| *byte == MARKER[0]);
            at += next.map_or(page.len(), |next| next + 1) as u64;
            continue;
        };
        let end = at + size as u64;
        match pages.last_mut().filter(|last| last.end == at) {
            Some(last) => last.end = end,
            None => pages.push(at..end),
        }
        at = end;
    }
    Ok(pages)
}

const MARKER: &[u8; 4] = b"OggS";
const HEADER: usize = 27;
/// 255 segments of 255 bytes.
const LONGEST: usize = HEADER + 255 + 255 * 255;

/// The length of the page at the start of `bytes`, if its checksum is right.
fn sound_page(bytes: &[u8]) -> Option<usize> {
    if !bytes.starts_with(MARKER) {
        return None;
    }
    let segments = usize::from(*bytes.get(HEADER - 1)?);
    let body: usize = bytes
        .get(HEADER..HEADER + segments)?
        .iter()
        .map(|length| usize::from(*length))
        .sum();
    let page = bytes.get(..HEADER + segments + body)?;
    let (before, rest) = page.split_at(22);
    let (checksum, behind) = rest.split_at(4);
    let bytes = before.iter().chain(&[0; 4]).chain(behind);
    let sum = bytes.fold(0_u32, |sum, byte| {
        (sum << 8) ^ CHECKSUMS[usize::from((sum >> 24) as u8 ^ byte)]
    });
    (checksum == sum.to_le_bytes()).then_some(page.len())
}

/// CRC-32 with the polynomial 0x04c11db7, not reflected.
const CHECKSUMS: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < table.len() {
        let mut sum = (at as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            sum = (sum << 1) ^ if sum >> 31 == 1 { 0x04c1_1db7 } else { 0 };
            bit += 1;
        }
        table[at] = sum;
        at += 1;
    }
    table
};
