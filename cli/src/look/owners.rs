//! Names of users and groups, as the image itself has them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use peelfs::bundle;
use peelfs::image::Tree;

use super::open::read_small;

/// The names of an image's `/etc/passwd` and `/etc/group`.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Owners {
    /// Reads both files; a file that is missing or cannot be read leaves numbers.
    pub(crate) async fn of(tree: &Arc<dyn Tree>) -> Self {
        let (users, groups) =
            tokio::join!(read_small(tree, b"/etc/passwd", LIMIT), read_small(tree, b"/etc/group", LIMIT));
        let text = |name: &[u8]| crate::text::printable(name);
        let collect = |names: Vec<(u32, &[u8])>| {
            // The first line of an id counts, as in libc.
            names.into_iter().rev().map(|(id, name)| (id, text(name))).collect()
        };
        Self {
            users: users.map_or_else(|_| HashMap::new(), |file| collect(bundle::user_names(&file).collect())),
            groups: groups.map_or_else(|_| HashMap::new(), |file| collect(bundle::group_names(&file).collect())),
        }
    }

    /// The name of a user, or its number.
    pub(crate) fn user(&self, uid: u32) -> Cow<'_, str> {
        self.users.get(&uid).map_or_else(|| uid.to_string().into(), |name| name.as_str().into())
    }

    /// The name of a group, or its number.
    pub(crate) fn group(&self, gid: u32) -> Cow<'_, str> {
        self.groups.get(&gid).map_or_else(|| gid.to_string().into(), |name| name.as_str().into())
    }

    /// Whether the image has a name for the user.
    pub(crate) fn knows_user(&self, uid: u32) -> bool {
        self.users.contains_key(&uid)
    }

    /// Whether the image has a name for the group.
    pub(crate) fn knows_group(&self, gid: u32) -> bool {
        self.groups.contains_key(&gid)
    }

    /// The number of a user by name.
    pub(crate) fn uid(&self, name: &str) -> Option<u32> {
        self.users.iter().find(|(_, known)| *known == name).map(|(id, _)| *id)
    }

    /// The number of a group by name.
    pub(crate) fn gid(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|(_, known)| *known == name).map(|(id, _)| *id)
    }
}

/// Size of each file that is read, in bytes.
const LIMIT: usize = 1 << 20;
