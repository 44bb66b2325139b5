//! Users and groups of an image's own `/etc/passwd` and `/etc/group` (passwd(5), group(5)).

use super::BundleError;

/// The user that a container's process runs as.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Supplementary groups, in ascending order.
    pub groups: Vec<u32>,
    /// Its home directory, if the image gives one.
    pub home: Option<String>,
}

/// The user that `typed` names: nothing, `USER` or `USER:GROUP`, each a name or a number.
///
/// Numbers are used as they are. A number alone gets the group that the image has for that user, else 0. Supplementary
/// groups apply to a user by name without a group (image-spec, conversion.md, "Config.User").
///
/// # Errors
/// [`BundleError::NoUser`], [`BundleError::NoGroup`], [`BundleError::Number`]
pub fn resolve_user(typed: &str, passwd: &[u8], group: &[u8]) -> Result<User, BundleError> {
    let (user, group_typed) = match typed.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (typed, None),
    };
    let numeric = if user.is_empty() { Some(0) } else { number(user)? };
    let account = match numeric {
        Some(uid) => accounts(passwd).find(|account| account.uid == uid),
        None => {
            let named = accounts(passwd).find(|account| account.name == user.as_bytes());
            Some(named.ok_or_else(|| BundleError::NoUser { name: user.to_owned() })?)
        }
    };
    let uid = numeric.or(account.as_ref().map(|account| account.uid)).unwrap_or_default();
    let gid = match group_typed {
        Some(typed) => group_number(typed, group)?,
        None => account.as_ref().map_or(0, |account| account.gid),
    };
    let mut of_member: Vec<u32> = match (&account, numeric, group_typed) {
        (Some(account), None, None) => {
            groups(group).filter(|group| group.has(account.name)).map(|group| group.gid).collect()
        }
        _ => Vec::new(),
    };
    of_member.retain(|group| *group != gid);
    of_member.sort_unstable();
    of_member.dedup();
    let home = account.and_then(|account| String::from_utf8(account.home.to_vec()).ok());
    Ok(User { uid, gid, groups: of_member, home: home.filter(|home| home.starts_with('/')) })
}

/// The users of a passwd(5) file, by number; invalid lines are left out.
pub fn user_names(passwd: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    accounts(passwd).map(|account| (account.uid, account.name))
}

/// The groups of a group(5) file, by number; invalid lines are left out.
pub fn group_names(group: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    groups(group).map(|group| (group.gid, group.name))
}

fn group_number(typed: &str, group: &[u8]) -> Result<u32, BundleError> {
    if let Some(gid) = number(typed)? {
        return Ok(gid);
    }
    let named = groups(group).find(|group| group.name == typed.as_bytes());
    named.map(|group| group.gid).ok_or_else(|| BundleError::NoGroup { name: typed.to_owned() })
}

/// A number; `None` for names, which may start with digits.
fn number(typed: &str) -> Result<Option<u32>, BundleError> {
    if typed.is_empty() || !typed.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    let number = typed.parse().ok().filter(|number: &u32| i32::try_from(*number).is_ok());
    number.map(Some).ok_or_else(|| BundleError::Number { number: typed.to_owned() })
}

struct Account<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl Group<'_> {
    fn has(&self, name: &[u8]) -> bool {
        self.members.split(|byte| *byte == b',').any(|member| member.trim_ascii() == name)
    }
}

/// The valid lines; others are ignored, as in libc.
fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    lines(passwd).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let (uid, gid) = (id(fields.nth(1)?)?, id(fields.next()?)?);
        Some(Account { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(group).filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some(Group { name, gid: id(fields.nth(1)?)?, members: fields.next().unwrap_or_default() })
    })
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty() && line[0] != b'#')
}

fn id(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nx:y:z\n\
        app:x:1000:1001:an app:/home/app:/bin/sh\n1app:x:7:7::relative:\nodd:x:8:9:\n\xff:x:5:5::/\xff:\n";
    const GROUP: &[u8] = b"root:x:0:\nstaff:x:50:app,root\nwheel:x:10: app ,odd\napp:x:1001:app\ntwice:x:50:app\n";

    fn found(typed: &str) -> User {
        resolve_user(typed, PASSWD, GROUP).unwrap()
    }

    #[test]
    fn users_and_groups_by_name_and_number() {
        let user = |uid, gid, groups: &[u32], home: Option<&str>| User {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.map(str::to_owned),
        };
        for (typed, wanted) in [
            ("", user(0, 0, &[], Some("/root"))),
            ("app", user(1000, 1001, &[10, 50], Some("/home/app"))),
            ("app:", user(1000, 1001, &[10, 50], Some("/home/app"))),
            ("app:staff", user(1000, 50, &[], Some("/home/app"))),
            ("app:77", user(1000, 77, &[], Some("/home/app"))),
            ("1000", user(1000, 1001, &[], Some("/home/app"))),
            ("4000", user(4000, 0, &[], None)),
            ("4000:staff", user(4000, 50, &[], None)),
            (":staff", user(0, 50, &[], Some("/root"))),
            ("1app", user(7, 7, &[], None)),
            ("odd", user(8, 9, &[10], None)),
        ] {
            assert_eq!(found(typed), wanted, "{typed}");
        }
    }

    #[test]
    fn numbers_have_the_names_of_valid_lines() {
        let users: Vec<_> = user_names(PASSWD).collect();
        assert_eq!(users, [(0, &b"root"[..]), (1000, b"app"), (7, b"1app"), (8, b"odd"), (5, b"\xff")]);
        let groups: Vec<_> = group_names(GROUP).map(|(gid, _)| gid).collect();
        assert_eq!(groups, [0, 50, 10, 1001, 50]);
    }

    #[test]
    fn a_name_that_is_not_there_is_an_error_that_names_it() {
        for (typed, wanted) in [
            ("nobody", "user `nobody` is not in the image's /etc/passwd"),
            ("app:none", "group `none` is not in the image's /etc/group"),
            ("2147483648", "`2147483648` is not a user or group number: the largest is 2147483647"),
            ("0:99999999999", "`99999999999` is not a user or group number: the largest is 2147483647"),
            ("broken", "user `broken` is not in the image's /etc/passwd"),
        ] {
            assert_eq!(resolve_user(typed, PASSWD, GROUP).unwrap_err().to_string(), wanted);
        }
        assert_eq!(resolve_user("0:0", b"", b"").unwrap(), User::default());
    }
}
