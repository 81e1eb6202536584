//! What a method is: declared once, used by the client, the server and the listing.

#![forbid(unsafe_code)]

use crate::error::Error;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// One callable method: its name on the wire and the types of its argument and result.
///
/// The [`methods!`](crate::methods) macro implements it for a unit struct; client, server and the machine-readable
/// listing all derive from that one declaration.
pub trait Method {
    /// Name on the wire, `receiver.Method`.
    const NAME: &'static str;
    /// What it does, for people.
    const DOC: &'static str;
    /// Which descriptors it takes and returns, for people; empty for none.
    const FDS: &'static str;
    /// The errors that are its own, for people; empty for a method that fails only as every call may: because its
    /// argument cannot be read, or the sandbox ends.
    const ERRORS: &'static str;
    /// How long it may take, for people; empty for one that answers at once.
    const BLOCKS: &'static str;
    /// The seed or reference it comes from, for people.
    const SOURCE: &'static str;
    /// The argument. A JSON `null` stands for its default.
    type Arg: Serialize + DeserializeOwned + Default + Send + 'static;
    /// The result.
    type Reply: Serialize + DeserializeOwned + Default + Send + 'static;
    /// How its errors are told in the JSON dialect, which has a text for them and nothing else.
    type Errors: ErrorText;

    /// The method's entry in the machine-readable listing.
    fn info() -> MethodInfo
    where
        Self: Sized,
    {
        MethodInfo {
            name: Self::NAME.to_owned(),
            doc: Self::DOC.to_owned(),
            fds: Self::FDS.to_owned(),
            errors: Self::ERRORS.to_owned(),
            blocks: Self::BLOCKS.to_owned(),
            source: Self::SOURCE.to_owned(),
            arg: crate::schema::of::<Self::Arg>(),
            result: crate::schema::of::<Self::Reply>(),
        }
    }
}

/// A form of errors in the JSON dialect.
pub trait ErrorText {
    /// The text that is sent for an error.
    fn text(error: &Error) -> String;
    /// The error that a received text stands for.
    fn error(text: &str) -> Error;
}

/// The message alone, as gVisor's urpc has it.
#[derive(Debug, Clone, Copy)]
pub struct MessageAlone;

impl ErrorText for MessageAlone {
    fn text(error: &Error) -> String {
        error.message.clone()
    }
    fn error(text: &str) -> Error {
        Error::failure(text)
    }
}

/// The form that a receiver names, or [`MessageAlone`]; for [`methods!`](crate::methods).
#[doc(hidden)]
#[macro_export]
macro_rules! error_text {
    () => {
        $crate::method::MessageAlone
    };
    ($form:ty) => {
        $form
    };
}

/// Looks at methods as types, one after the other; see [`crate::api::visit_methods`].
pub trait Visitor {
    /// Looks at one.
    fn visit<M: Method + 'static>(&mut self);
}

/// Collects the methods' entries for the listing.
impl Visitor for Vec<MethodInfo> {
    fn visit<M: Method + 'static>(&mut self) {
        self.push(M::info());
    }
}

/// A method as `Airlock.Methods` and `airlock call --list` show it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MethodInfo {
    /// `receiver.Method`.
    pub name: String,
    /// What it does.
    pub doc: String,
    /// Descriptors it takes and returns; empty for none.
    pub fds: String,
    /// Errors that are its own; empty for none.
    pub errors: String,
    /// How long it may take; empty when it answers at once.
    pub blocks: String,
    /// Where it comes from: gVisor's source, or airlock itself.
    pub source: String,
    /// The argument's shape: an object of field name to type name (nested for structures), or a type name.
    pub arg: serde_json::Value,
    /// The result's shape, likewise.
    pub result: serde_json::Value,
}

/// `own`, or `common` where that is empty; for [`methods!`](crate::methods).
#[doc(hidden)]
pub const fn or_common(own: &'static str, common: &'static str) -> &'static str {
    if own.is_empty() { common } else { own }
}

/// Declares the methods of one receiver.
///
/// ```
/// use airlock_wire::api::types::Empty;
/// airlock_wire::methods! {
///     receiver "Clock", from "the manual of clocks";
///     /// Says what time it is, in nanoseconds since boot.
///     Now: Empty => u64;
///     /// Writes a line to a file every second, n times.
///     Tick: u32 => Empty, fds "in: the file", errors "`no file came`", blocks "n seconds";
/// }
/// assert_eq!(<Now as airlock_wire::Method>::NAME, "Clock.Now");
/// assert_eq!(<Tick as airlock_wire::Method>::SOURCE, "the manual of clocks");
/// let mut listing = Vec::new();
/// visit(&mut listing);
/// assert_eq!(listing.len(), 2);
/// ```
///
/// Each entry makes a unit struct that implements [`Method`]; `visit` shows them to a [`Visitor`] in order. What follows the types
/// is for people, each part optional, in this order: `fds` (descriptors, [`Method::FDS`]), `errors`
/// ([`Method::ERRORS`]), `blocks` ([`Method::BLOCKS`]), `from` ([`Method::SOURCE`], when it is not the receiver's). A receiver
/// may name a form for its errors in JSON (`errors_as`, an [`ErrorText`](crate::method::ErrorText)).
#[macro_export]
macro_rules! methods {
    (receiver $receiver:literal $(, from $common:literal)? $(, errors_as $form:ty)?; $(
        $(#[doc = $doc:literal])+
        $name:ident : $arg:ty => $reply:ty
            $(, fds $fds:literal)? $(, errors $errors:literal)? $(, blocks $blocks:literal)? $(, from $from:literal)? ;
    )+) => {
        /// Where these methods come from, unless one says otherwise.
        const COMMON_SOURCE: &str = concat!("" $(, $common)?);
        /// How their errors are told in the JSON dialect.
        type CommonErrors = $crate::error_text!($($form)?);

        $(
            $(#[doc = $doc])+
            #[derive(Debug, Clone, Copy, PartialEq, Eq)]
            pub struct $name;

            impl $crate::method::Method for $name {
                const NAME: &'static str = concat!($receiver, ".", stringify!($name));
                const DOC: &'static str = concat!($($doc),+).trim_ascii();
                const FDS: &'static str = concat!("" $(, $fds)?);
                const ERRORS: &'static str = concat!("" $(, $errors)?);
                const BLOCKS: &'static str = concat!("" $(, $blocks)?);
                const SOURCE: &'static str =
                    $crate::method::or_common(concat!("" $(, $from)?), COMMON_SOURCE);
                type Arg = $arg;
                type Reply = $reply;
                type Errors = CommonErrors;
            }
        )+

        /// Shows the methods of this receiver to `visitor`, in the order of their declaration.
        pub fn visit(visitor: &mut impl $crate::method::Visitor) {
            $( $crate::method::Visitor::visit::<$name>(visitor); )+
        }
    };
}
