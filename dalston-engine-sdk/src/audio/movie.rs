//! The tracks of an M4A file: which are played, and the edit list, that is the begin and the length
//! of the recording in the decoded frames.
//!
//! An M4A file plays the tracks that it enables, and Symphonia does not tell which these are.
//!
//! AAC encoders put one or two thousand samples in front of the recording, 23 to 48 ms at 44.1 kHz,
//! and write that to the edit list. Symphonia reads the list but does not apply it. Without it
//! every time in the transcript of a voice memo would be late.

use std::io::{self, Read, Seek, SeekFrom};

use super::trim::Edges;

/// The begin and the length of the recording in one track.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edit {
    pub(super) track: u32,
    /// In the scale of the movie. 0 if unknown.
    duration: u64,
    /// In the scale of the media.
    start: u64,
    movie_scale: u32,
    media_scale: u32,
}

impl Edit {
    /// In frames at `sample_rate`.
    pub(super) fn edges(&self, sample_rate: u32) -> Option<Edges> {
        let frames = |time: u64, scale: u32| {
            let frames = u128::from(time) * u128::from(sample_rate) / u128::from(scale);
            u64::try_from(frames).ok()
        };
        let length = match self.duration {
            0 => None,
            // Durations are rounded to the scale of the movie, often milliseconds: one tick more
            // keeps the last samples.
            duration => Some(frames(duration.checked_add(1)?, self.movie_scale)?),
        };
        Some(Edges {
            before: frames(self.start, self.media_scale)?,
            length,
            ..Edges::default()
        })
    }
}

/// The tracks of a file.
#[derive(Debug, Default)]
pub(super) struct Tracks {
    /// The tracks that are played.
    pub(super) enabled: Vec<u32>,
    /// None for a track whose list has more than one part.
    pub(super) edits: Vec<Edit>,
}

/// The tracks of a file. None for a malformed file: its decoder reports that.
pub(super) fn tracks(file: &mut (impl Read + Seek)) -> Tracks {
    let mut tracks = Tracks::default();
    // The tracks before an error are valid.
    let _ = collect(file, &mut tracks);
    tracks
}

/// The end of the last box, which is behind the end of a file that was cut off.
pub(super) fn end_of_boxes(file: &mut (impl Read + Seek), length: u64) -> u64 {
    let mut walk = Walk {
        file,
        boxes_left: MAX_BOXES,
    };
    let mut end = 0;
    while end < length && walk.boxes_left > 0 {
        match walk.next_box(end, length) {
            Ok((_, _, after)) if after > end => end = after,
            _ => break,
        }
    }
    end
}

fn collect(file: &mut (impl Read + Seek), tracks: &mut Tracks) -> io::Result<()> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut walk = Walk {
        file,
        boxes_left: MAX_BOXES,
    };
    let Some(movie) = walk.find(0..length, b"moov")? else {
        return Ok(());
    };
    let Some(movie_scale) = walk.time_scale(movie.clone(), b"mvhd")? else {
        return Ok(());
    };
    let mut rest = movie;
    while let Some(found) = walk.find(rest.clone(), b"trak")? {
        rest.start = found.end;
        let Some((track, is_enabled)) = walk.track_id(found.clone())? else {
            continue;
        };
        if is_enabled {
            tracks.enabled.push(track);
        }
        let Some(media) = walk.find(found.clone(), b"mdia")? else {
            continue;
        };
        let Some(media_scale) = walk.time_scale(media, b"mdhd")? else {
            continue;
        };
        if let Some((duration, start)) = walk.only_edit(found)? {
            tracks.edits.push(Edit {
                track,
                duration,
                start,
                movie_scale,
                media_scale,
            });
        }
    }
    Ok(())
}

type Range = std::ops::Range<u64>;

/// Steps from box to box without reading their content.
struct Walk<'a, F> {
    file: &'a mut F,
    boxes_left: u32,
}

/// No file has more boxes on these levels.
const MAX_BOXES: u32 = 2_000;

impl<F: Read + Seek> Walk<'_, F> {
    /// The content of the first box of that kind in `range`.
    fn find(&mut self, range: Range, kind: &[u8; 4]) -> io::Result<Option<Range>> {
        let mut at = range.start;
        while at.saturating_add(8) <= range.end && self.boxes_left > 0 {
            let (name, content, end) = self.next_box(at, range.end)?;
            if content > end || end > range.end {
                return Ok(None);
            }
            if name == *kind {
                return Ok(Some(content..end));
            }
            at = end;
        }
        Ok(None)
    }

    /// The name of the box at `at`, and the positions of its content and of the next box. A box
    /// without a size goes to `last`.
    fn next_box(&mut self, at: u64, last: u64) -> io::Result<([u8; 4], u64, u64)> {
        self.boxes_left -= 1;
        self.file.seek(SeekFrom::Start(at))?;
        let [a, b, c, d, name @ ..] = self.take::<8>()?;
        let (size, header) = match u32::from_be_bytes([a, b, c, d]) {
            0 => (last.saturating_sub(at), 8),
            1 => (u64::from_be_bytes(self.take()?), 16),
            size => (u64::from(size), 8),
        };
        Ok((name, at.saturating_add(header), at.saturating_add(size)))
    }

    /// Ticks per second, from the header of a movie or of its media. Both have the same format.
    fn time_scale(&mut self, range: Range, kind: &[u8; 4]) -> io::Result<Option<u32>> {
        let Some(header) = self.find(range, kind)? else {
            return Ok(None);
        };
        let times = if self.version(&header)? == 1 { 16 } else { 8 };
        self.file.seek(SeekFrom::Start(header.start + 4 + times))?;
        Ok(Some(u32::from_be_bytes(self.take()?)).filter(|scale| *scale > 0))
    }

    /// The number of a track, and whether it is played.
    fn track_id(&mut self, track: Range) -> io::Result<Option<(u32, bool)>> {
        let Some(header) = self.find(track, b"tkhd")? else {
            return Ok(None);
        };
        let times = if self.version(&header)? == 1 { 16 } else { 8 };
        let [_, _, flags] = self.take()?;
        self.file.seek(SeekFrom::Start(header.start + 4 + times))?;
        let id = u32::from_be_bytes(self.take()?);
        Ok(Some((id, flags & 1 == 1)))
    }

    /// Duration and start of the only edit of a track. An empty edit before it, which delays the
    /// track against a picture, is ignored.
    fn only_edit(&mut self, track: Range) -> io::Result<Option<(u64, u64)>> {
        let Some(edits) = self.find(track, b"edts")? else {
            return Ok(None);
        };
        let Some(list) = self.find(edits, b"elst")? else {
            return Ok(None);
        };
        let long = self.version(&list)? == 1;
        let [_, _, _, count @ ..] = self.take::<7>()?;
        let mut only = None;
        for _ in 0..u32::from_be_bytes(count).min(3) {
            let (duration, start) = if long {
                (u64::from_be_bytes(self.take()?), i64::from_be_bytes(self.take()?))
            } else {
                (
                    u64::from(u32::from_be_bytes(self.take()?)),
                    i64::from(i32::from_be_bytes(self.take()?)),
                )
            };
            let normal_speed = self.take()? == [0, 1, 0, 0];
            let Ok(start) = u64::try_from(start) else { continue };
            if only.is_some() || !normal_speed {
                return Ok(None);
            }
            only = Some((duration, start));
        }
        Ok(only)
    }

    /// The first byte of a box, which gives the width of its times. The next read continues behind
    /// it.
    fn version(&mut self, inside: &Range) -> io::Result<u8> {
        self.file.seek(SeekFrom::Start(inside.start))?;
        self.take::<1>().map(|[version]| version)
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn boxed(kind: &[u8; 4], inside: &[&[u8]]) -> Vec<u8> {
        let inside = inside.concat();
        let size = (inside.len() as u32 + 8).to_be_bytes();
        [&size[..], kind, &inside].concat()
    }

    /// A header with 32-bit times, and `word` where a scale or a track id stands.
    fn header(kind: &[u8; 4], word: u32) -> Vec<u8> {
        boxed(kind, &[&[0; 12], &word.to_be_bytes(), &[0; 40]])
    }

    fn movie(edits: &[(u32, i32)]) -> Vec<u8> {
        let entries: Vec<u8> = edits
            .iter()
            .flat_map(|(duration, start)| {
                [
                    duration.to_be_bytes(),
                    start.to_be_bytes(),
                    0x0001_0000_u32.to_be_bytes(),
                ]
                .concat()
            })
            .collect();
        let count = (edits.len() as u32).to_be_bytes();
        let list = boxed(b"edts", &[&boxed(b"elst", &[&[0; 4], &count, &entries])]);
        let media = boxed(b"mdia", &[&header(b"mdhd", 44_100)]);
        let other = boxed(b"trak", &[&header(b"tkhd", 1), &media]);
        let track = boxed(b"trak", &[&header(b"tkhd", 2), &list, &media]);
        let movie = boxed(b"moov", &[&header(b"mvhd", 1000), &other, &track]);
        [boxed(b"ftyp", &[b"M4A "]), boxed(b"mdat", &[&[7; 100]]), movie].concat()
    }

    fn edges_of(bytes: &[u8]) -> Option<Edges> {
        let edits = tracks(&mut Cursor::new(bytes)).edits;
        assert!(
            edits.iter().all(|edit| edit.track == 2),
            "the other track has no edits"
        );
        edits.first()?.edges(44_100)
    }

    #[test]
    fn the_start_and_the_length_are_counted_in_frames() {
        let expected = Edges {
            before: 1024,
            length: Some(44_100 + 44),
            ..Edges::default()
        };
        assert_eq!(edges_of(&movie(&[(1000, 1024)])), Some(expected));
        assert_eq!(
            edges_of(&movie(&[(500, -1), (1000, 1024)])),
            Some(expected),
            "an empty edit is left out"
        );
        let open = Edges {
            before: 2112,
            ..Edges::default()
        };
        assert_eq!(edges_of(&movie(&[(0, 2112)])), Some(open));
    }

    #[test]
    fn several_edits_or_none_are_ignored() {
        assert_eq!(edges_of(&movie(&[])), None);
        assert_eq!(edges_of(&movie(&[(1000, 1024), (1000, 90_000)])), None);
    }

    #[test]
    fn truncated_files_and_wrong_sizes_do_not_panic() {
        let whole = movie(&[(1000, 1024)]);
        for length in 0..whole.len() {
            tracks(&mut Cursor::new(&whole[..length]));
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                for edit in tracks(&mut Cursor::new(changed)).edits {
                    edit.edges(44_100);
                }
            }
        }
    }
}
