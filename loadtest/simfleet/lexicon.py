"""The words of the simulated workers: what their vocabulary knows whole and what their answers are made of."""

# One token each, bare, with a leading space and capitalised.
WHOLE_WORDS: tuple[str, ...] = tuple(
    """
    about above across after again against almost along already also although always among another answer any appear
    area around arrive because become before began begin behind believe below beside better between beyond bridge bring
    broad build built called came carry cause center certain change city clear close cloud coast cold color come common
    complete could country course cover current dark deep depth direct does done door down draw drive during each early
    earth east edge either else empty end enough equal even evening ever every example except face fact fall family far
    farm fast few field figure final find fine fire first fish five flat floor flow follow food force forest form found
    four free fresh friend from front full garden gate gave general give glass gold gone good grain grass great green
    ground group grow half hand happen harbor hard have head hear heat heavy held help here high hill hold home horse
    hot hour house however hundred idea inside into iron island just keep kind knew known lake land language large last
    late later laugh lead leaf learn least leave left less letter level light line list little long look lost love low
    machine made main make many map mark market matter mean measure meet middle might mile mind minute moment month moon
    more morning most mountain mouth move much music must name near need never next night noon north note nothing notice
    number object ocean off often old once only open order other over own page paint paper part pass past path pattern
    people perhaps person picture piece place plain plan plane plant play point pool possible power present press pretty
    problem produce program pull quick quiet quite rain ran reach read ready real reason record red region remember rest
    result rich ride right ring rise river road rock room round rule run said sail same sand save school science sea
    season second see seem sent sentence serve set seven several shape sharp ship shore short should show side sign
    silver simple since single six size sky sleep slow small snow some song soon sound south space speak special spring
    stand star start state stay steel step still stone stood stop store story straight stream street strong study such
    summer sun sure surface table take talk tall teach tell ten test than that the their them then there these they
    thing think this those though thought thousand three through time together told too took top toward town trade
    train travel tree true try turn two under until upon use usual valley very view village voice wait walk wall want
    warm watch water wave way weather week weight well west what wheel when where which while white whole why wide wild
    will wind window winter wire with within without wonder wood word work world would write year yellow yet young
    """.split()
)

# More than one token each: where a resumed answer may be cut inside a word.
LONG_WORDS: tuple[str, ...] = tuple(
    """
    afternoon agreement archipelago bibliography breakfast calculation comfortable conversation countryside dictionary
    electricity engineering everything expedition geography grandfather handwriting imagination laboratory lighthouse
    manufacture microscope neighbourhood observatory orchestra partnership philosophy photograph railway republic
    restaurant secretary shipwright temperature thunderstorm translation understanding university vegetable watercolour
    """.split()
)

# The first character of a phrase occurs nowhere else in the list: from a character alone one can tell where a phrase
# begins, and so an answer cut inside a phrase is continued by whoever has the tokens so far.
CHINESE_PHRASES: tuple[str, ...] = (
    "山水之间",
    "春天来了",
    "学而时习",
    "江南好",
    "明月几时有",
    "桃花流去",
    "北方的雪",
    "长夜将尽",
    "城外的灯",
    "海上生风",
    "古老的钟",
    "雨后清晨",
)

# Four byte-level tokens each: a token may complete no character, and then its event has an empty text.
EMOJI: tuple[str, ...] = ("🙂", "🚀", "🌊", "🌱")
