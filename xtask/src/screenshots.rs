//! The pictures of the dev platform's page in the documentation.

use std::fs;

use crate::error::Error;
use crate::steps::{cargo, root, target_directory};
use crate::system::{CHROMIUM, REDIS, require};

/// Runs the tests of the page, which take the pictures, and copies them into `docs/images`.
pub(crate) fn write() -> Result<(), Error> {
    require(&[REDIS, CHROMIUM])?;
    let (taken, kept) = (target_directory().join("screenshots"), root().join("docs/images"));
    // Without those of former tests.
    if taken.exists() {
        fs::remove_dir_all(&taken).map_err(Error::at(&taken))?;
    }
    cargo()
        .args("test -p dev_platform --test it -- page")
        .env("LIBTORCH", crate::test::NO_LIBTORCH)
        .run()?;
    fs::create_dir_all(&kept).map_err(Error::at(&kept))?;
    for picture in fs::read_dir(&taken).map_err(Error::at(&taken))? {
        let picture = picture.map_err(Error::at(&taken))?;
        let copy = kept.join(format!("page-{}", picture.file_name().to_string_lossy()));
        fs::copy(picture.path(), &copy).map_err(Error::at(&copy))?;
        println!("{}", copy.display());
    }
    Ok(())
}
