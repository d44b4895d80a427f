//! Containers for samples and packets, written without the code under test.

/// 16-bit mono at 16 kHz.
pub(super) fn aiff(samples: &[i16]) -> Vec<u8> {
    let data: Vec<u8> = samples.iter().flat_map(|sample| sample.to_be_bytes()).collect();
    // 16 000 as a number of 80 bits.
    let rate = [0x40, 0x0c, 0xfa, 0, 0, 0, 0, 0, 0, 0];
    let common = [
        &1_u16.to_be_bytes()[..],
        &(samples.len() as u32).to_be_bytes(),
        &16_u16.to_be_bytes(),
        &rate,
    ];
    let chunks = [
        boxed(b"COMM", &common.concat(), false),
        boxed(b"SSND", &[&[0; 8], &data[..]].concat(), false),
    ];
    boxed(b"FORM", &[b"AIFF".to_vec(), chunks.concat()].concat(), false)
}

/// 16-bit mono at 16 kHz.
pub(super) fn caf(samples: &[i16]) -> Vec<u8> {
    let data: Vec<u8> = samples.iter().flat_map(|sample| sample.to_be_bytes()).collect();
    let numbers = [0, 2, 1, 1, 16_u32].map(u32::to_be_bytes).concat();
    let description = [&16_000_f64.to_be_bytes()[..], b"lpcm", &numbers].concat();
    let chunk = |name: &[u8], data: &[u8]| [name, &(data.len() as u64).to_be_bytes(), data].concat();
    [
        b"caff\0\x01\0\0".to_vec(),
        chunk(b"desc", &description),
        chunk(b"data", &[&[0; 4], &data[..]].concat()),
    ]
    .concat()
}

/// The packets of an Ogg file with Opus in an M4A file without an edit list. All packets have the
/// same duration, 20 ms.
pub(super) fn movie_with_opus(ogg: &[u8]) -> Vec<u8> {
    let packets = packets(ogg);
    let head = &packets[0];
    let sound = &packets[2..];
    let le = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    // The same header with the highest byte of each number first.
    let dops = [
        &[0, head[9]][..],
        &le(10).to_be_bytes(),
        &48_000_u32.to_be_bytes(),
        &le(16).to_be_bytes(),
        &[0],
    ];
    let entry = [
        &[
            0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 16, 0, 0, 0, 0,
        ][..],
        &(48_000_u32 << 16).to_be_bytes(),
        &boxed(b"dOps", &dops.concat(), false),
    ];
    let entry = boxed(b"Opus", &entry.concat(), false);
    let count = sound.len() as u32;
    let words = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_be_bytes()).collect() };
    let sizes: Vec<u32> = sound.iter().map(|packet| packet.len() as u32).collect();
    let ftyp = boxed(b"ftyp", b"M4A \0\0\0\0M4A ", false);
    // The data are before the table, at a known position.
    let offset = ftyp.len() as u32 + 8;
    let table = [
        boxed(b"stsd", &[words(&[1]), entry].concat(), true),
        boxed(b"stts", &words(&[1, count, 960]), true),
        boxed(b"stsc", &words(&[1, 1, count, 1]), true),
        boxed(b"stsz", &[words(&[0, count]), words(&sizes)].concat(), true),
        boxed(b"stco", &words(&[1, offset]), true),
    ];
    let handler = [&[0; 4][..], b"soun", &[0; 13]].concat();
    let minf = [
        boxed(b"smhd", &[0; 4], true),
        boxed(b"stbl", &table.concat(), false),
    ];
    let media = [
        boxed(b"mdhd", &words(&[0, 0, 48_000, count * 960, 0]), true),
        boxed(b"hdlr", &handler, true),
        boxed(b"minf", &minf.concat(), false),
    ];
    let track_header = [words(&[0, 0, 1, 0, count * 20]), vec![0; 60]].concat();
    let track = [
        boxed(b"tkhd", &track_header, true),
        boxed(b"mdia", &media.concat(), false),
    ];
    let movie = [
        boxed(
            b"mvhd",
            &[words(&[0, 0, 1_000, count * 20]), vec![0; 80]].concat(),
            true,
        ),
        boxed(b"trak", &track.concat(), false),
    ];
    [
        ftyp,
        boxed(b"mdat", &sound.concat(), false),
        boxed(b"moov", &movie.concat(), false),
    ]
    .concat()
}

/// A name and a length, as AIFF and M4A write them in a different order. `is_full`: with version
/// and flags.
fn boxed(name: &[u8; 4], content: &[u8], is_full: bool) -> Vec<u8> {
    let is_aiff = matches!(name, b"FORM" | b"COMM" | b"SSND");
    let version: &[u8] = if is_full { &[0; 4] } else { &[] };
    let length = content.len() + version.len() + if is_aiff { 0 } else { 8 };
    let length = (length as u32).to_be_bytes();
    let start = if is_aiff {
        [name, &length[..]].concat()
    } else {
        [&length[..], name].concat()
    };
    [&start, version, content].concat()
}

fn packets(ogg: &[u8]) -> Vec<Vec<u8>> {
    let (mut packets, mut packet, mut at) = (Vec::new(), Vec::new(), 0);
    while at < ogg.len() {
        let segments = usize::from(ogg[at + 26]);
        let lengths = &ogg[at + 27..at + 27 + segments];
        at += 27 + segments;
        for &length in lengths {
            packet.extend(&ogg[at..at + usize::from(length)]);
            at += usize::from(length);
            if length < 255 {
                packets.push(std::mem::take(&mut packet));
            }
        }
    }
    packets
}
