"""The currencies that money can be asked for in: the codes of ISO 4217 that are somebody's money today.

Left out on purpose is what nobody pays with: funds and units of account (BOV, CHE, CHW, CLF, COU, MXV, USN, UYI, UYW, XAD, XDR, XSU,
XUA), metals (XAG, XAU, XPD, XPT), testing and no currency (XTS, XXX), and what has been replaced (BGN by EUR in 2026, ANG by XCG in
2025, ZWL by ZWG in 2024). Only what an operator enters is held against this list, never what is stored: a release that drops a code must
not turn a price that is in force into one of another money. Read next: `halo/config.py`.
"""

from typing import Final

ACTIVE: Final = frozenset(
    """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CLP CNY COP CRC CUP CVE CZK
    DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS
    KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD
    OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP
    TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
    """.split()  # noqa: SIM905  # a list would be one code a line
)
"""As amended until January 2026. A code that is new, or gone, is one change to this line."""
