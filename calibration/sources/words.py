"""Common English words for rendered text, drawn from the Python documentation."""

WORDS = """
abbreviation abcd abcde able about above absence absolute abstract accept acceptable acceptance accepted
accepts access accessed accesses accessible accessing according accordingly account achieve acquired
across action actions activate activated active actual actually add added adding addition additional
address addresses adds adjacent advance advanced affect after again against agent aggregate agreement
algorithm algorithms alias aliases align alignment alive all allow allowed allowing allows almost along
alpha alphabet alphanumeric alphanums alphas alphaword already also alternate alternative alternatives
although always among amount an analogous anchor and animation annotated annotation annotations another
any anyone anything anywhere appauthor appear appears append appended appending appendix applicable
application applications applied applies apply applying appname approach appropriate arbitrary arch
architecture archive archives are area args argspec argument arguments arithmetic around array arrays
article as asked assert assertion assign assigned assigning assignment assignments associate associated
assume assumed assumes async asynchronous at attach attached attempt attempted attempting attempts attr
attribute attributes attrs audio augmented auth authenticate author authorized authors auto automatic
available average avoid avoids await aware away back backend background backslash backslashes backward
backwards badly base based bases basic be because become becomes been before begin beginning begins behalf
behave behaves behavior behaviour being below benefit best beta better between beyond binary bind binding
bindings bits bitwise blank block blocking blocks blue body bold bool boolean both bottom bound bounded
brackets branch break breakpoint breakpoints breaks broken browser browsers buffer buffered buffering
build building builds built builtin builtins bunch but by byte bytearray bytecode bytes bytestring cache
cached caches caching calculate calculated call callable callables callback callbacks called caller
calling calls can candidate candidates cannot canonical capable caption capture care careful carry case
cases catch categories category caught cause caused causes cdrom cell cells center cert certain
certificate certificates chain change changed changes changing channel channels char character characters
charge chars charset check checked checker checkers checking checks child children choice choose chosen
chunk chunks cipher claim claims class classes classmethod clause clauses clean cleanup clear cleared
clearly client clients close closed closer closing code codec codecs codename codes coefficient collected
collection collections colon color colors column columns combination combinations combine combined
combining come comma command commands comment comments commercial common commonly compare compared
compares comparing comparison comparisons compatible compilation compile compiled compiler compilers
complete completed completely completion complex compliance compliant component components composed
compressed compression comps compute computed computer computes computing concrete condition conditional
conditions confidential config configured conflict conflicting conflicts conjunction connect connected
connecting connection connections consecutive consent consequence consider considered consist consistent
consisting consists console const constant constants constraints construct constructed constructing
construction constructor constructs consume consumed consumer consuming contact contain contained
container containers containing contains content contents context continue continued contrast contributor
control controlled controls convenience convenient convention conversion conversions convert converted
converting converts convey conveyed conveying cookie cookies coordinates copied copies copy copying
copyright core coroutine correct correctly correspond corresponds cost could count counted counter
counting counts cover covered covers create created creates creating creation credentials crop cross
ctypes current currently cursor curve custom customize customized cycle cycles daemon dark data database
dataclass dataset date datetime days dbus debug debugged debugger debugging decide decimal declaration
declare declared decode decoded decoder decoding decorated decorator decorators deep def default
defaulting defaults define defined defines defining definition definitions delete deleted deletion
delimited delimiter delimiters deny depend dependencies dependency dependent depending depends deprecated
depth derivative derived desc describe described describes describing description descriptions descriptor
descriptors designated designed desired dest destination detail detailed details detect detected determine
determined determines determining development device diagnostic diagram dialect dict dictionaries
dictionary dicts diff differ difference differences different differently digest digit digits direct
direction directive directives directly directories directory dirs disable disabled discarded disclaimer
discovery disk display displayed displaying displays dist distinct distinguish distribute distributed
distributing distribution distro distutils div divide division do docloc docs docstring docstrings doctest
document documented documents does doing domain done dots dotted double down download downloaded draft
driven dummy dump duplicate duplicates duration during dynamic dynamically each earlier easier easily easy
edge editable editor effect effective effectively effects efficient eggs either elapsed electronic element
elements elif ellipsis else embed embedded emit emitted emoji empty emulate enable enabled enables
enclosed enclosing encode encoded encoder encoding encodings encountered encrypted end endian ending
endpoint ends enforce enforced enough ensure ensures ensuring enter entered entering entire entirely
entities entity entries entry enum environment epoch equal equality equals equivalent error errors escape
escaped escapes especially essential established evaluate evaluated evaluates evaluating evaluation even
event events eventually ever every everyone everything exact exactly example examples except exception
exceptions exchange exclude excluded excluding exclusion exclusive exclusively executable executables
execute executed executes executing execution exercise exhausted exist existence existing exists exit
exiting exits expand expanded expect expected expects expiration expired explanation explicit explicitly
exponent export exported exposed expr express expression expressions extend extended extension extensions
extent external extra extract extracted extracting extraction extras facilities facility fact factory fail
failed failing fails failure failures fall fallback falls false family fashion feature features fetch
fetched fewer field fields file filename filenames fileobj files filesystem fill filled fillvalue filter
filtering filters final finally find finder finding fine finished finite first fixed flag flags float
floating floats flow fold folder follow followed following follows font fonts foo footer for force
forceload foreground form formal format formats formatted formatter formatters formatting formed former
forms forward found four fractions fragment frame frames free freedom friendly from front frozenset full
fullname fully func funcs function functions functools further future garbage general generally generate
generated generates generating generator generic get gets getting github give given gives giving glibc
glob global globals globs goes going good governed grammar grammars grant granted grants graph greater
greet greeting grid group grouped grouping groups guarantee guaranteed guarantees guard guess gzip half
hand handle handled handler handlers handles handling handshake happen happens hard has hash hashable
hashes have having hchar head header headers heading heap height held hello help helper helpful helps
hence here hereby herein hexadecimal hierarchy high higher highest highlight highlighted highlighting
highlights hint hold holder holds home hook hooks host hostname hour however href human iana idea ident
identical identified identifier identifiers identifies identify identifying identity if ignore ignored
ignoring image immediately immutable implement implemented implementing implements implicit implied
implies imply import important imported importer importing importlib impose in include included includes
including inclusion incompatible incomplete indent indentation indented indents independent index indexed
indexes indexing indicate indicated indicates indicating indices indirect indirectly individual infinite
info information infringement inherit inheritance inherited inherits init initial initialized inline input
inputs insensitive insert inserted inside inspect inspired install installation installed installer
installing instance instances instantiate instantiated instead instring int integer integers intended
interaction interactive interface interfaces internal internally interpreted interpreter interval into
introduced ints invalid invariant invocation invoke invoked invokes invoking is issue issued issuer issues
it italic item items iter iterable iterables iterate iteration iterator itertools its itself ivar joined
json junk just justify keep keeping keeps kept kernel key keyed keyfunc keyring keys keyword keywords kind
kinds know known kwargs label lambda language languages large larger last later latest latter layout
layouts lazr lead leading least leaving left legacy legal length lengths less letter letters level levels
lexer lexers liability libraries library license licensed licenses light like likely limit limitation
limitations limited line linear lineno lines link linked linker linking links list listed listing lists
literal literally literals little live lnum load loaded loader loaders loading local locale localhost
locally locals located location locations locator lock logging logic logical long longer longest look
looked looking looks lookup lookups loop lower lowercase machine macro macros made magic mail mailbox main
maintain major make makes making management manager managers manifest manner manual many mapped mapping
mappings maps mark marked marker markers markobject marks markup mask masked maskedarray master match
matched matches matching material math matrix matter maximum maxsplit may mean meaning meaningful means
meant mechanism media median medium meet meets member members membership memo memory mentioned merge
merged message messages meta metaclass metaclasses metadata meth method methods middle might minimal
minimum minor minus mismatches missing mixed mode model modern modification modified modifies modify
modifying modname modpkgs module modules modulo monospace month more most mostly move moved msgpack much
multi multiple musl must mutable name named namedtuple names namespace namespaces naming narrowed
narrowing native nearest necessarily necessary need needed needs negative neither nested nesting netloc
netmask network never new newer newline newlines newly next no node nodes non nonce none nonlocal nonzero
normal normalized normally not notation note nothing notice notices null number numbering numbers numeric
numerical numerically numlist numpy nums oauth oauthlib obj object objects obligations obtain obtained
obtaining occur occurred occurrence occurrences occurring occurs of offer offering offset offsets often
older omitted on once one ones only onto opcode opcodes open opened opener openid opening operand operands
operate operates operating operation operations operator operators opinion optimization option optional
optionally options optparse or order ordered ordering ordinary origin original originally os oset other
others otherwise out output outputs outside over overall overflow overload overridden override overrides
overriding overwritten owner ownership package packages packaging packed packrat padding page pager pages
pair pairs paragraph param parameter parameters params parent parentheses parents parse parsed parser
parses parsing part partial particular parties parts party pass passed passes passing passphrase password
patch patent patents path pathname paths patt pattern patterns payload peer people percent perform
performance performed performing performs perhaps permanently permission permissions permit permitted
persistent person physical pickle pickled piece pieces pixels pixmap pkey place placed places plain
platform platformdirs platforms please plugin plugins plus point pointer points pool popped port portion
portions position positional positions positive posn possible possibly post potentially power pprint
precedence preceding precise precision pred predicate preference preferred prefix prefixed prefixes
prepared preprocessor presence present presentation preserve preserved preserving pretty prevent preview
previous previously primarily primary print printable printed printing prints prior priority private
probably problem problems process processed processes processing produce produced produces product
products prog program programming programs progress project prominent prompt propagate proper properly
properties property proprietary protect protected protection protocol protocols provide provided provider
providers provides providing provision proxies proxy public publicly publish published publisher
punctuation pure purpose purposes push pydoc pygments pypa pyparsing pyproject python qualified qualify
query queue quiet quite quotation quote quoted quotes railroad raise raised raises raising random range
ranges rather reached read readable reader reading readline reads ready real really realms realname reason
reasonable reasonably reasons receive received receiver receives recent recently recipient recipients
recognize recognized recommended record records recursion recursive recursively redirect redirection
redirects redistribute reducefunc refer reference referenced references referred refers refresh regarding
regardless regex region register registered registering registry regular reinstated related relationship
relative release released releases relevant reliable rely remain remainder remaining remains remote remove
removed removes removing render renderable renderables rendered rendering repeat repeated repeatedly
repetition replace replaced replacement replaces replacing repo report reported reporting reports
repository repr represent represented representing represents request requested requests require required
requirement requirements requires requiring reserved reset resolution resolve resolved resolver resource
resources resp respect respective respectively response responses responsible rest restore restriction
restrictions result resulting results retained retains retries retrieve retrieved retry return returned
returning returns reuse reverse revised revision revocation revoked rich right rights roaming roman root
roots roughly round rounded rounding route routine routines rows royalty rtype rule rules run runner
running runs runtime rvalue safe safely said same sample satisfy save saved saying scalar scanned scheme
schemes scientific scope scopes screen script scripts sdist search searched searching second seconds
secret section sections see seek seen segment segments select selected selection selector selects self
semantics send sender sending sense sensitive sent sentinel separate separated separately separating
separator separators sequence sequences serial serialized series server servers service session sessions
set sets setting settings setup setuptools several shall shape share shared shell short shorter should
show shown shows shutdown side sign signal signals signature signatures signed significant signing
silently similar simple simply since single site size sizes skip skipped skipping slash slice slicing slot
slow small smaller smallest so socket sockets software solely some something sometimes sort sorted sorting
source sourcecode sources space spaces span spans spec special specific specified specifier specifies
specify specifying specs speed spinner split splits square stack standard star start started starting
starts state stated statement statements states static stating statistics status stderr stdin stdlib
stdout step steps still stop stops storage store stored storing strategy stream streams strict strictly
string strings strip stripped strong struct structure structures stuff style styles subclass subclassed
subclasses subclassing subject sublicense submodules subprocess subscription subsequence subsequences
subsequent subset substitutes substring subtype succeed succeeds success successful successfully such
suffix suggested suitable suite summary superclass supplied supply support supported supporting supports
suppress suppressed sure surrounding symbol symbolic symbols symlink symlinks syntax sys system systems
table tabs tag tags take taken takes taking target targets task tasks team technique tells template
templates temporarily temporary term terminal terminate terminated terminates terms test tested testing
tests text texts texture than that the their them theme themselves then there therefore thereof these they
thing things think third this those though thread threads three through thrown thus tied time timeout
timeouts timer times timestamp timezone title titles to together token tokens tokentype toks toml tool
tools topmost total towards trace traceback tracebacks track traditional trailing transaction transfer
transform transformed transforms translate translated translation trap treat treated tree tried tries
triple true truncating trust trusted truth try trying tuple tuples turn twice two type typechecker typed
types typical typically typing tzinfo unable uname unary unavailable unbound unchanged uncompressed
undefined under underlying underscore understand unexpected unhashable unicode unique unit unknown unless
unlexed unlike unmodified unpack unpacked unpacker unpacking unsafe unset unsigned unspecified unsupported
until up update updated updates updating upgrade upon upper uppercase urlencoded usable usage use used
useful user username users uses using usual usually utility uuid valid validate validating validation
validator value valuefunc values variable variables variant various vars vectors verbatim verbose
verification verified verifier verifies verify verifying version versionadded versions vertical very via
view views violation virtual virtualenv visible void wadllib wait waiting want wants warned warning
warnings warranty was way ways we weak week weekday weight weights well were what whatever wheel wheels
when whenever where whether which while whitespace whole whose wide width widths wiki wildcard will window
windows wish wishes with within without word words work working works world worst would wrap wrapped
wrapper wrapping wraps writable write writing written wrong year years yield yielded yielding yields you
your zero zeros zipfile
""".split()  # noqa: SIM905
