//! The files of an image: made without a name and named only when they are complete, found again by their names.

#![forbid(unsafe_code)]

use crate::files::unique;
use airlock_loader::checkpoint::image::{PAGES, PAGES_META, STATEFILE};
use airlock_wire::error::{Error, Kind, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

/// Link in an image directory to that of the image that it builds upon, as CRIU has it.
pub const PARENT: &str = "parent";
/// What restores in the background tell each other of the pages that the programs ask for.
const WORKING_SET: &str = "working_set.img";
/// The longest chain of images that build upon one another.
const MAX_PARENTS: usize = 64;

/// The statefile last: without it there is no image.
const NAMES: [&str; 3] = [PAGES, PAGES_META, STATEFILE];

/// An image that is being written. Dropped before [`NewImage::finish`] (or with this process), nothing of it is left.
#[derive(Debug)]
pub struct NewImage {
    dir: PathBuf,
    /// In the order of [`NAMES`], with the temporary name of those that had to have one.
    files: Vec<(File, Option<PathBuf>)>,
}

impl NewImage {
    /// Begins an image in `dir`, which is made (0700) with its parents where it is missing. Files are 0600.
    ///
    /// # Errors
    /// It is not a directory, or cannot be written to.
    pub fn create(dir: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| Error::from(e).context(format!("image directory {}", dir.display()));
        match std::fs::metadata(dir) {
            Ok(m) if m.is_dir() => {}
            Ok(_) => return Err(Error::invalid_argument(format!("{} is not a directory", dir.display()))),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
            }
            Err(e) => return Err(failed(e)),
        }
        let dir = std::path::absolute(dir).map_err(failed)?;
        let mut image = Self { dir, files: Vec::new() };
        for name in NAMES {
            let file = image.new_file(name)?;
            image.files.push(file);
        }
        Ok(image)
    }

    fn new_file(&self, name: &str) -> Result<(File, Option<PathBuf>)> {
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        match open(&self.dir, OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC, mode) {
            Ok(file) => return Ok((File::from(file), None)),
            // Network file systems and old overlays.
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {}
            Err(e) => {
                return Err(Error::from(e).context(format!("make a file in {}", self.dir.display())));
            }
        }
        let path = self.temporary(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| Error::from(e).context(format!("make {}", path.display())))?;
        Ok((file, Some(path)))
    }

    fn temporary(&self, name: &str) -> PathBuf {
        self.dir.join(format!(".{name}.{}-{}", std::process::id(), unique()))
    }

    /// The directory, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files as a checkpoint takes them: statefile, pages' metadata, pages.
    pub fn as_fds(&self) -> Vec<BorrowedFd<'_>> {
        use std::os::fd::AsFd;
        self.files.iter().rev().map(|(file, _)| file.as_fd()).collect()
    }

    /// Gives the files their names, in the place of an image that was there. `parent` is the directory of the image that
    /// this one builds upon, as it is to be found from this one's.
    ///
    /// # Errors
    /// As link(2) and rename(2); then there is no image in the directory.
    pub fn finish(mut self, parent: Option<&Path>) -> Result<()> {
        let named = self.name_all(parent);
        if named.is_err() {
            // Half an image would be the old state with the new pages.
            let _ = std::fs::remove_file(self.dir.join(STATEFILE));
        }
        named
    }

    fn name_all(&mut self, parent: Option<&Path>) -> Result<()> {
        let dir = self.dir.clone();
        let failed = |name: &str, e: std::io::Error| {
            Error::from(e).context(format!("name {}", dir.join(name).display()))
        };
        let link = dir.join(PARENT);
        match std::fs::symlink_metadata(&link) {
            Ok(m) if m.file_type().is_symlink() => {
                std::fs::remove_file(&link).map_err(|e| failed(PARENT, e))?;
            }
            _ => {}
        }
        if let Some(parent) = parent {
            std::os::unix::fs::symlink(parent, &link).map_err(|e| failed(PARENT, e))?;
        }
        for (index, name) in NAMES.iter().enumerate() {
            let path = match &self.files[index] {
                (_, Some(path)) => path.clone(),
                (file, None) => {
                    let path = self.temporary(name);
                    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
                    nix::unistd::linkat(AT_FDCWD, own.as_str(), AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW)
                        .map_err(|e| failed(name, e.into()))?;
                    self.files[index].1 = Some(path.clone());
                    path
                }
            };
            std::fs::rename(&path, dir.join(name)).map_err(|e| failed(name, e))?;
            self.files[index].1 = None;
        }
        Ok(())
    }
}

impl Drop for NewImage {
    fn drop(&mut self) {
        for path in self.files.iter().filter_map(|(_, path)| path.as_ref()) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// An image, opened to be restored or built upon.
#[derive(Debug)]
pub struct Image {
    /// The statefile.
    pub statefile: OwnedFd,
    /// The pages' metadata and the pages, if they are in files of their own.
    pub pages: Option<[OwnedFd; 2]>,
    /// The pages' metadata and the pages of the images that it builds upon, nearest first.
    pub parents: Vec<[OwnedFd; 2]>,
    /// What restores in the background tell each other, if it can be had.
    pub working_set: Option<OwnedFd>,
}

impl Image {
    /// Opens the image in `dir`, and those that it builds upon.
    ///
    /// # Errors
    /// There is none, or one of its files is missing or cannot be read; the chain of parents does not end.
    pub fn open(dir: &Path) -> Result<Self> {
        let statefile = open_file(&dir.join(STATEFILE)).map_err(|e| match e.kind {
            Kind::NoSuchEntity => Error::no_such_entity(format!(
                "there is no image in {}: {STATEFILE} is missing",
                dir.display()
            )),
            _ => e,
        })?;
        let pages = open_pages(dir)?;
        let mut parents = Vec::new();
        let mut above = dir.to_owned();
        while pages.is_some() && above.join(PARENT).symlink_metadata().is_ok() {
            let builds_upon = |e: Error| e.context(format!("the image that {} builds upon", above.display()));
            if parents.len() == MAX_PARENTS {
                return Err(Error::invalid_argument(format!(
                    "{}: more than {MAX_PARENTS} images build upon one another (or do they in a circle?)",
                    dir.display()
                )));
            }
            // Its real path, so that links do not pile up.
            let next = std::fs::canonicalize(above.join(PARENT)).map_err(|e| builds_upon(e.into()))?;
            let pages = open_pages(&next).map_err(builds_upon)?.ok_or_else(|| {
                builds_upon(Error::no_such_entity(format!("there is no {PAGES} in {}", next.display())))
            })?;
            parents.push(pages);
            above = next;
        }
        Ok(Self { statefile, pages, parents, working_set: None })
    }

    /// Opens the record of the working set in `dir`, the directory of the image, which is made if it is not there. It is
    /// done without where the directory cannot be written to, or something else has the name.
    pub(super) fn open_working_set(&mut self, dir: &Path) {
        let path = dir.join(WORKING_SET);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC);
        match options.open(&path) {
            Ok(file) if file.metadata().is_ok_and(|m| m.is_file()) => self.working_set = Some(file.into()),
            Ok(_) => log::debug!("{} is no file", path.display()),
            Err(e) => log::debug!("open {}: {e}", path.display()),
        }
    }
}

fn open_pages(dir: &Path) -> Result<Option<[OwnedFd; 2]>> {
    match (open_file(&dir.join(PAGES_META)), open_file(&dir.join(PAGES))) {
        (Ok(meta), Ok(pages)) => Ok(Some([meta, pages])),
        (Err(a), Err(b)) if a.kind == Kind::NoSuchEntity && b.kind == Kind::NoSuchEntity => Ok(None),
        (Err(e), _) | (_, Err(e)) => Err(e),
    }
}

/// Never blocks on what is no file: the sandbox says what it thinks of that.
fn open_file(path: &Path) -> Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
        .map_err(|e| Error::from(e).context(format!("open {}", path.display())))?;
    Ok(file.into())
}

/// Where `--parent-path` leads: as seen from the image's directory, as in runc and CRIU, unless it is absolute.
///
/// The image's directory may not be there yet, so `..` is taken off its name rather than looked up.
pub fn parent_dir(image: &Path, parent: &Path) -> PathBuf {
    let mut dir = image.to_owned();
    for part in parent.components() {
        match part {
            Component::ParentDir if !dir.exists() && dir.file_name().is_some() => {
                dir.pop();
            }
            Component::CurDir => {}
            part => dir.push(part),
        }
    }
    if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;

    fn entries(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn write(image: &NewImage, text: &str) {
        for (fd, name) in image.as_fds().into_iter().zip(["state", "meta", "pages"]) {
            File::from(fd.try_clone_to_owned().unwrap())
                .write_all(format!("{name} {text}").as_bytes())
                .unwrap();
        }
    }

    fn text(fd: OwnedFd) -> String {
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn an_image_appears_when_it_is_complete_and_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let image = NewImage::create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        write(&image, "1");
        assert!(Image::open(&path).unwrap_err().message.contains("there is no image"));
        image.finish(None).unwrap();
        assert_eq!(entries(&path), [STATEFILE, PAGES, PAGES_META]);
        assert_eq!(std::fs::metadata(path.join(PAGES)).unwrap().mode() & 0o777, 0o600);

        let second = NewImage::create(&path).unwrap();
        write(&second, "2");
        let image = Image::open(&path).unwrap();
        assert_eq!(text(image.statefile), "state 1");
        drop(second);
        assert_eq!(entries(&path), [STATEFILE, PAGES, PAGES_META]);
        let third = NewImage::create(&path).unwrap();
        write(&third, "3");
        third.finish(Some(Path::new("../base"))).unwrap();
        assert_eq!(std::fs::read_link(path.join(PARENT)).unwrap(), Path::new("../base"));
        assert!(Image::open(&path).unwrap_err().message.contains("builds upon"));
        let base = NewImage::create(&dir.path().join("a/base")).unwrap();
        write(&base, "0");
        base.finish(None).unwrap();
        let image = Image::open(&path).unwrap();
        let [meta, pages] = image.pages.unwrap();
        assert_eq!((text(meta), text(pages)), ("meta 3".to_owned(), "pages 3".to_owned()));
        let [[meta, _]] = image.parents.try_into().unwrap();
        assert_eq!(text(meta), "meta 0");
    }

    #[test]
    fn files_without_names_are_gone_with_their_maker_and_circles_end() {
        let dir = tempfile::tempdir().unwrap();
        let image = NewImage::create(dir.path()).unwrap();
        write(&image, "1");
        drop(image);
        assert_eq!(entries(dir.path()), Vec::<String>::new());
        let image = NewImage::create(dir.path()).unwrap();
        image.finish(Some(Path::new("."))).unwrap();
        assert!(Image::open(dir.path()).unwrap_err().message.contains("circle"));
        std::fs::remove_file(dir.path().join(PAGES)).unwrap();
        std::fs::remove_file(dir.path().join(PARENT)).unwrap();
        assert!(Image::open(dir.path()).unwrap_err().message.contains(PAGES));
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(NewImage::create(&file).unwrap_err().message.contains("not a directory"));
    }
}
