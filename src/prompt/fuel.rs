//! Fuel for values that minijinja reads free of charge, and limits on their nesting.
//!
//! minijinja's own fuel pays for instructions, for text that is written or made, and for the items
//! that its filters visit. It does not pay for values inside the items: a comparison, a key or the
//! drop of a value recurses into nested lists, and `a + b` of two lists is one instruction at any
//! length. So [`scan`](super::scan) sends values that are compared, added, kept in a variable or
//! used as a key through the filters below, and filters and tests that compare are wrapped. All of
//! them charge by one rule, [`read`]. Fuel is a count, not a time: `SECURITY.md` says what it
//! bounds.

use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value, filters, functions, tests};

use super::limits::{NESTING_MAX, iterable, nested_too_deep, unsupported};
use super::markup;

/// Filter for operands of comparisons.
pub(super) const COMPARED: &str = "_compared";

/// Filter for operands of `+`.
pub(super) const ADDED: &str = "_added";

/// Filter for the value that `set` gives to a variable.
pub(super) const KEPT: &str = "_kept";

/// Filter for the value that `set` gives to an attribute of a namespace.
pub(super) const HELD: &str = "_held";

/// Filter for subscripts and keys of mappings.
pub(super) const KEY: &str = "_key";

/// Filter for the value that a loop iterates over.
pub(super) const ITERATED: &str = "_iterated";

/// Filter for operands of `~`, which prints them as Python does.
pub(super) const JOINED: &str = "_joined";

/// Names of these filters, which error messages leave out.
pub(super) const FILTERS: [&str; 7] = [COMPARED, ADDED, KEPT, HELD, KEY, ITERATED, JOINED];

/// Bytes of text that one unit of fuel pays for: minijinja's rate.
const TEXT_BYTES: u64 = 64;

/// Bytes of an attribute's name, at most: a filter looks it up in each item.
const NAME_BYTES_MAX: usize = 1000;

/// Checks the arguments of a filter or function before it runs.
type Check = fn(&State, &[Value]) -> Result<(), Error>;

/// Adds the filters that `scan` uses, and wraps those filters, tests and functions of minijinja's
/// that need a check.
pub(super) fn add_filters(env: &mut Environment<'static>) {
    env.add_filter(COMPARED, |state: &State, value: Value| {
        let value = markup::plain(value);
        compare(state, &value).map(|()| value)
    });
    env.add_filter(ITERATED, |value: Value| iterable(&value).map(|()| value));
    env.add_filter(KEPT, |state: &State, value: Value| read(state, &value).map(|()| value));
    env.add_filter(HELD, |state: &State, value: Value| {
        read_nested(state, &value, 1, |_| Ok(())).map(|()| value)
    });
    env.add_filter(ADDED, |state: &State, value: Value| {
        markup::refuse(&value)?;
        if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
            charge_items(state, value.len().unwrap_or(0))?;
        }
        Ok::<_, Error>(value)
    });
    env.add_filter(KEY, |state: &State, value: Value| charge_key(state, &value).map(|()| value));
    wrap_filters(env);
    wrap_tests(env);
}

fn wrap_filters(env: &mut Environment<'static>) {
    // `map`, `select` and their like take none for an empty list in Jinja2, too.
    let checked: [(&str, Value, Check); 19] = [
        ("sort", Value::from_function(filters::sort), sortable),
        ("unique", Value::from_function(filters::unique), sortable),
        ("groupby", Value::from_function(filters::groupby), sortable),
        ("dictsort", Value::from_function(filters::dictsort), sortable),
        ("min", Value::from_function(filters::min), sortable),
        ("max", Value::from_function(filters::max), sortable),
        ("list", Value::from_function(filters::list), first_iterable),
        ("first", Value::from_function(filters::first), first_iterable),
        ("last", Value::from_function(filters::last), first_iterable),
        ("reverse", Value::from_function(filters::reverse), first_iterable),
        ("batch", Value::from_function(filters::batch), first_iterable),
        ("slice", Value::from_function(filters::slice), first_iterable),
        ("items", Value::from_function(filters::items), first_iterable),
        ("int", Value::from_function(filters::int), first_defined),
        ("float", Value::from_function(filters::float), first_defined),
        ("map", Value::from_function(filters::map), short_name),
        ("selectattr", Value::from_function(filters::selectattr), short_name),
        ("rejectattr", Value::from_function(filters::rejectattr), short_name),
        ("sum", Value::from_function(filters::sum), summable),
    ];
    for (name, filter, check) in checked {
        env.add_filter(name, behind(check, filter));
    }
    env.add_function("namespace", behind(copyable, Value::from_function(functions::namespace)));
    env.add_function("dict", behind(copyable, Value::from_function(functions::dict)));
}

/// Returns `function`, which runs after `check`.
fn behind(
    check: Check,
    function: Value,
) -> impl Fn(&mut State, Rest<ValueOrKwargs>) -> Result<Value, Error> + Send + Sync + 'static {
    move |state, args| {
        let args = args.into_values();
        check(state, &args)?;
        function.call(state, &args)
    }
}

fn wrap_tests(env: &mut Environment<'static>) {
    let comparing: [(&[&'static str], Value); 8] = [
        (&["eq", "equalto", "=="], Value::from_function(tests::is_eq)),
        (&["ne", "!="], Value::from_function(tests::is_ne)),
        (&["lt", "lessthan", "<"], Value::from_function(tests::is_lt)),
        (&["le", "<="], Value::from_function(tests::is_le)),
        (&["gt", "greaterthan", ">"], Value::from_function(tests::is_gt)),
        (&["ge", ">="], Value::from_function(tests::is_ge)),
        (&["in"], Value::from_function(tests::is_in)),
        (&["sameas"], Value::from_function(tests::is_sameas)),
    ];
    for (names, test) in comparing {
        for name in names {
            let test = test.clone();
            env.add_test(*name, move |state: &mut State, value: Value, other: Value| {
                compare(state, &value)?;
                compare(state, &other)?;
                Ok::<_, Error>(test.call(state, &[value, other])?.is_true())
            });
        }
    }
}

/// Charges for arguments that are copied.
fn copyable(state: &State, args: &[Value]) -> Result<(), Error> {
    args.iter().try_for_each(|arg| iterable(arg).and_then(|()| read(state, arg)))
}

fn first_iterable(_: &State, args: &[Value]) -> Result<(), Error> {
    args.first().map_or(Ok(()), iterable)
}

fn first_defined(_: &State, args: &[Value]) -> Result<(), Error> {
    match args.first().is_some_and(Value::is_undefined) {
        true => Err(minijinja::ErrorKind::UndefinedError.into()),
        false => Ok(()),
    }
}

/// Charges for the items that are compared, and refuses what `short_name` does.
fn sortable(state: &State, args: &[Value]) -> Result<(), Error> {
    short_name(state, args)?;
    first_iterable(state, args)?;
    args.first().map_or(Ok(()), |value| compare(state, value))
}

/// Refuses long names of attributes: the first argument after the value, or the keyword
/// `attribute`.
fn short_name(_: &State, args: &[Value]) -> Result<(), Error> {
    let is_long = |name: &Value| name.as_str().is_some_and(|name| name.len() > NAME_BYTES_MAX);
    match args.get(1).is_some_and(is_long) || keyword(args, "attribute").as_ref().is_some_and(is_long) {
        true => Err(unsupported(format!("an attribute's name of more than {NAME_BYTES_MAX} bytes"))),
        false => Ok(()),
    }
}

/// Refuses sums of strings and lists, each of which would be longer than the last.
fn summable(state: &State, args: &[Value]) -> Result<(), Error> {
    short_name(state, args)?;
    first_iterable(state, args)?;
    let start = args.get(2).filter(|value| !value.is_kwargs()).cloned().or(keyword(args, "start"));
    match start.is_some_and(|start| start.kind() != ValueKind::Number) {
        true => Err(unsupported("a sum of values other than numbers is not implemented")),
        false => Ok(()),
    }
}

/// The keyword argument of this name.
fn keyword(args: &[Value], name: &str) -> Option<Value> {
    let kwargs = args.last().filter(|last| last.is_kwargs())?;
    kwargs.get_attr(name).ok().filter(|value| !value.is_undefined())
}

/// Charges for so many bytes of text.
pub(super) fn charge_text(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / TEXT_BYTES)
}

/// Charges for so many items of a list, at minijinja's rate.
pub(super) fn charge_items(state: &State, items: usize) -> Result<(), Error> {
    state.consume_fuel(items as u64 / 2)
}

/// Charges for a value by which something is looked up, and refuses values that are no keys in
/// Python.
pub(super) fn charge_key(state: &State, value: &Value) -> Result<(), Error> {
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) && !value.is_tuple() {
        return Err(unsupported(format!("a value of kind {} as a key", value.kind())));
    }
    compare(state, value)
}

/// Charges as [`read`] does for a value that is compared, and refuses markup, whose comparison in
/// Jinja2 differs.
pub(super) fn compare(state: &State, value: &Value) -> Result<(), Error> {
    read_nested(state, value, 0, markup::refuse)
}

/// Charges for a value and everything inside it: one unit of fuel for each item of a list and each
/// entry of a mapping, and one for 64 bytes of text. Refuses values that are nested too deep.
pub(super) fn read(state: &State, value: &Value) -> Result<(), Error> {
    read_nested(state, value, 0, |_| Ok(()))
}

fn read_nested(
    state: &State,
    value: &Value,
    depth: usize,
    check: fn(&Value) -> Result<(), Error>,
) -> Result<(), Error> {
    if depth > NESTING_MAX {
        return Err(nested_too_deep());
    }
    check(value)?;
    let text = value.as_str().or_else(|| markup::text_of(value));
    charge_text(state, text.map_or(0, str::len))?;
    match value.kind() {
        // Namespaces that hold each other would never be freed.
        ValueKind::Map if depth > 0 && is_namespace(value) => {
            return Err(unsupported("a namespace in another value is not implemented"));
        }
        ValueKind::Map => {
            for key in value.try_iter()?.checked() {
                let key = key?;
                state.consume_fuel(1)?;
                read_nested(state, &key, depth + 1, check)?;
                read_nested(state, &value.get_item(&key)?, depth + 1, check)?;
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()?.checked() {
                state.consume_fuel(1)?;
                read_nested(state, &item?, depth + 1, check)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}
