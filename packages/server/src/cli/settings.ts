/**
 * The table of the broker's settings: flag, variable and default. A flag overrides the variable SLUICE_<NAME>, which
 * overrides the default. `readSettings` returns complete, checked values.
 */
import { BlockList, isIPv6 } from 'node:net'
import { LIMITS, durationText } from '@sluice/protocol'
import { SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MAX, segmentBytesFit } from '../log/segment.js'
import { MEMORY_BYTES_MIN, defaultMemoryBytes } from '../memory.js'
import { whole } from './flags.js'
import { UsageError } from './failure.js'
import { nearest } from './spelling.js'
import { duration, size } from './units.js'

/**
 * Minimum size of a segment. The log itself accepts smaller segments, but the state pages of queues with keys, ids and
 * times to live need this size.
 */
const SEGMENT_BYTES_LEAST = 1024 ** 2

interface Setting<Value> {
  readonly describe: string
  /** The default value, as the text of a flag. */
  readonly default: string
  /** The expected form, as the end of the sentence "it must be …". */
  readonly form: string
  /** The value; undefined if the text does not have this form. */
  readonly parse: (text: string) => Value | undefined
}

function setting<Value>(
  describe: string,
  fallback: string,
  form: string,
  parse: (text: string) => Value | undefined,
): Setting<Value> {
  return { describe, default: fallback, form, parse }
}

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const
export type LogLevel = (typeof LOG_LEVELS)[number]

const CONNECTIONS_MAX = 1_000_000

export const SETTINGS = {
  port: setting('TCP port; 0 takes any free port', '7420', 'a whole number from 0 to 65535', (text) =>
    whole(text, 0, 65_535),
  ),
  host: setting('Address to listen on; loopback only', '127.0.0.1', 'an address or a host name', (text) =>
    /^[\w.:%-]+$/.test(text) ? text : undefined,
  ),
  'data-dir': setting('Directory of the log; created if missing', './data', 'a path', (text) =>
    text === '' || text.includes('\0') ? undefined : text,
  ),
  'segment-bytes': setting(
    'Size of a log file; an existing log keeps its size',
    `${SEGMENT_BYTES_DEFAULT / 1024 ** 2}MiB`,
    `a size from ${SEGMENT_BYTES_LEAST / 1024 ** 2}MiB to ${SEGMENT_BYTES_MAX / 1024 ** 2}MiB in whole blocks of 4KiB`,
    (text) => {
      const bytes = size(text)
      return bytes !== undefined && bytes >= SEGMENT_BYTES_LEAST && segmentBytesFit(bytes) ? bytes : undefined
    },
  ),
  'max-message-bytes': setting(
    'Maximum size of a message; at most a quarter of a segment',
    `${LIMITS.messageBytesDefault / 1024 ** 2}MiB`,
    `a size from 1 to ${LIMITS.messageBytesMax / 1024 ** 2}MiB`,
    (text) => {
      const bytes = size(text)
      return bytes !== undefined && bytes >= 1 && bytes <= LIMITS.messageBytesMax ? bytes : undefined
    },
  ),
  'max-connections': setting(
    'Maximum number of connections',
    '10000',
    `a whole number from 1 to ${CONNECTIONS_MAX}`,
    (text) => whole(text, 1, CONNECTIONS_MAX),
  ),
  memory: setting(
    'Memory that the broker may use; beyond it publishes are refused',
    'half of the available memory',
    `a size of ${MEMORY_BYTES_MIN / 1024 ** 2}MiB or more`,
    (text) => {
      const bytes = text === 'half of the available memory' ? defaultMemoryBytes() : size(text)
      return bytes !== undefined && bytes >= MEMORY_BYTES_MIN ? bytes : undefined
    },
  ),
  heartbeat: setting(
    'Maximum silence of a healthy connection; after twice this time, a silent connection is closed',
    `${LIMITS.heartbeatMsDefault / 1000}s`,
    `a duration from ${durationText(LIMITS.heartbeatMsMin)} to ${durationText(LIMITS.heartbeatMsMax)}`,
    (text) => {
      const ms = duration(text)
      return ms !== undefined && ms >= LIMITS.heartbeatMsMin && ms <= LIMITS.heartbeatMsMax ? ms : undefined
    },
  ),
  'log-level': setting<LogLevel>(
    'Lowest level that is logged',
    'info',
    `one of ${LOG_LEVELS.join(', ')}`,
    (text) => LOG_LEVELS.find((level) => level === text),
  ),
} as const satisfies Record<string, Setting<unknown>>

export type SettingName = keyof typeof SETTINGS
export type Settings = {
  readonly [Name in SettingName]: (typeof SETTINGS)[Name] extends Setting<infer Value> ? Value : never
}

export const SETTING_NAMES = Object.keys(SETTINGS) as SettingName[]

const PREFIX = 'SLUICE_'

export function variableOf(name: SettingName): string {
  return `${PREFIX}${name.toUpperCase().replaceAll('-', '_')}`
}

/** @throws UsageError naming the flag or variable */
export function readSettings(
  flags: Readonly<Record<string, unknown>>,
  environment: Readonly<Record<string, string | undefined>>,
): Settings {
  const settings = Object.fromEntries(
    SETTING_NAMES.map((name) => {
      const flag = flags[name]
      const variable = environment[variableOf(name)]
      if (flag !== undefined) return [name, parsed(name, flag, `--${name}`)]
      if (variable !== undefined && variable !== '') return [name, parsed(name, variable, variableOf(name))]
      return [name, SETTINGS[name].parse(SETTINGS[name].default)]
    }),
  ) as unknown as Settings
  if (!isLoopback(settings.host)) {
    throw new UsageError(
      `The broker does not listen on ${settings.host}: it has no authentication yet, so every client that reaches it would have full access.`,
      'Listen on 127.0.0.1, and connect other machines through a tunnel, such as `ssh -L 7420:127.0.0.1:7420 HOST`.',
    )
  }
  return settings
}

function parsed(name: SettingName, text: unknown, source: string): unknown {
  const { parse, form } = SETTINGS[name]
  const value = typeof text === 'string' ? parse(text) : undefined
  if (value !== undefined) return value
  const shown = typeof text === 'string' ? JSON.stringify(text.slice(0, 60)) : String(text)
  // A Kubernetes service named `sluice` sets SLUICE_PORT in every container of its namespace.
  const advice =
    source.startsWith(PREFIX) && typeof text === 'string' && /^\w+:\/\//.test(text)
      ? `Kubernetes sets it for a service named sluice: pass --${name}, or set enableServiceLinks to false.`
      : `Set ${source} to ${form}, or omit it for ${SETTINGS[name].default}.`
  throw new UsageError(`${source} is ${shown}; it must be ${form}.`, advice)
}

/** Variables that the client reads, and variables that Kubernetes sets for a service named sluice. */
const FOREIGN = /^SLUICE_(URL|SERVICE_.*|PORT_\d+_.*)$/

/** Variables that have the prefix but are not settings, each with the setting that was probably meant. */
export function unknownVariables(
  environment: Readonly<Record<string, string | undefined>>,
): { readonly name: string; readonly meant: string | undefined }[] {
  const known = SETTING_NAMES.map((name) => variableOf(name).slice(PREFIX.length))
  return Object.keys(environment)
    .filter((name) => name.startsWith(PREFIX) && !FOREIGN.test(name))
    .map((name) => ({ name, own: name.slice(PREFIX.length) }))
    .filter(({ own }) => !known.includes(own))
    .map(({ name, own }) => {
      const meant = nearest(own, known)
      return { name, meant: meant === undefined ? undefined : `${PREFIX}${meant}` }
    })
}

const LOOPBACK = new BlockList()
LOOPBACK.addSubnet('127.0.0.0', 8, 'ipv4')
LOOPBACK.addAddress('::1', 'ipv6')

function isLoopback(host: string): boolean {
  return host === 'localhost' || LOOPBACK.check(host, isIPv6(host) ? 'ipv6' : 'ipv4')
}
