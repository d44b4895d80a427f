//! Symphonia's reader of a container, chosen by [`detect`](super::detect).

use std::fs::File;
use std::io;

use symphonia::core::errors::Error;
use symphonia::core::formats::{FormatOptions, FormatReader};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions, ReadBytes};
use symphonia::default::formats;

use super::detect::Container;
use super::error::AudioErrorKind;
use super::movie;
use super::ogg;
use super::parts::Parts;
use super::symphonia_error::{classify, guarded};

/// A reader of a container.
pub(super) struct Opened {
    pub(super) reader: Box<dyn FormatReader>,
    /// Whether damaged parts before the first samples were left out.
    pub(super) begin_is_damaged: bool,
}

/// Opens the container that begins at `start`.
pub(super) fn open(
    file: &File,
    container: Container,
    start: u64,
    length: u64,
) -> Result<Opened, AudioErrorKind> {
    let copy = || file.try_clone().map_err(AudioErrorKind::Unreadable);
    // A movie that was cut off must not be shorter than its boxes, or its reader ignores the last
    // one.
    let claimed = match container {
        Container::Movie => movie::end_of_boxes(&mut copy()?, length).max(length),
        _ => length,
    };
    let error = match read(Parts::new(copy()?, std::iter::once(start..claimed)), container)? {
        Ok(reader) => {
            return Ok(Opened {
                reader,
                begin_is_damaged: false,
            });
        }
        Err(error) => error,
    };
    if container == Container::Ogg {
        let pages = ogg::sound_pages(&mut copy()?, length).map_err(AudioErrorKind::Unreadable)?;
        // A file of which only the end is missing was cut off.
        if pages.len() > 1 {
            let reader = read(Parts::new(copy()?, pages), container)?;
            return match reader {
                Ok(reader) => Ok(Opened {
                    reader,
                    begin_is_damaged: true,
                }),
                Err(_) => Err(damaged(HEADER_PAGE)),
            };
        }
    }
    Err(match error {
        Error::Unsupported("isomp4: missing moov atom") => damaged(NO_CONTENTS),
        Error::IoError(error)
            if container == Container::Movie && error.kind() == io::ErrorKind::UnexpectedEof =>
        {
            damaged(NO_CONTENTS)
        }
        Error::Unsupported(what) => damaged(what),
        error => classify(error),
    })
}

type Read = Result<Box<dyn FormatReader>, Error>;

fn read(source: Parts, container: Container) -> Result<Read, AudioErrorKind> {
    let mut stream = MediaSourceStream::new(Box::new(source), MediaSourceStreamOptions::default());
    let options = FormatOptions::default();
    guarded(|| -> Read {
        Ok(match container {
            Container::Aiff => Box::new(formats::AiffReader::try_new(stream, options)?),
            Container::Caf => Box::new(formats::CafReader::try_new(stream, options)?),
            Container::Flac => Box::new(formats::FlacReader::try_new(stream, options)?),
            Container::Ogg => Box::new(formats::OggReader::try_new(stream, options)?),
            Container::Movie => {
                // The reader goes back to the length before the name of the first box.
                stream.read_quad_bytes()?;
                Box::new(formats::IsoMp4Reader::try_new(stream, options)?)
            }
            Container::Matroska => Box::new(formats::MkvReader::try_new(stream, options)?),
            Container::Mpeg => Box::new(formats::MpaReader::try_new(stream, options)?),
            Container::Adts => Box::new(formats::AdtsReader::try_new(stream, options)?),
        })
    })
}

pub(super) const HEADER_PAGE: &str = "a page of its header";

const NO_CONTENTS: &str = "it ends before its table of contents, which such files often have at their end";

fn damaged(what: &str) -> AudioErrorKind {
    AudioErrorKind::Damaged(what.to_owned())
}
