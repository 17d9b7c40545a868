/**
 * Options of queues and streams: from the form that a program writes to the fields of ENSURE, and from the fields of an
 * answer to the form that a program reads. Fields that end in `Ms` are durations.
 */
import { LIMITS, shown, SluiceError } from '@sluice/protocol'
import { durationMs } from './duration.js'
import { queueOf, type QueueRef } from './options.js'
import type { Body } from './requests.js'

/** The place of each option in the form of a program, by its name on the wire: `retainAgeMs` is `retain.age`. */
export type OptionPaths = Readonly<Record<string, readonly [name: string, part?: string]>>

/**
 * Returns the options with the names and the units that they have on the wire. @throws SluiceError INVALID_OPTION,
 * INVALID_NAME
 */
export function wireOptions(
  kind: 'queue' | 'stream' | 'group',
  optionPaths: OptionPaths,
  named: object,
): Body {
  const paths = Object.entries(optionPaths)
  onlyOptions(kind, named, '', [...new Set(paths.map(([, [name]]) => name))])
  const options: Record<string, unknown> = {}
  for (const [wireName, [name, part]] of paths) {
    let value = (named as Record<string, unknown>)[name]
    if (value === undefined) continue
    if (isRate(name)) value = wireRate(kind, name, value)
    else if (name === 'waitForGroups') value = wireWait(value)
    if (part !== undefined) {
      const parts = paths.flatMap(([, [of, part]]) => (of === name && part !== undefined ? [part] : []))
      onlyOptions(kind, value, `${name}.`, parts)
      value = (value as Record<string, unknown>)[part]
      if (value === undefined) continue
    }
    const path = part === undefined ? name : `${name}.${part}`
    if (wireName.endsWith('Ms')) value = durationMs(value, path, 'INVALID_OPTION')
    else if (name === 'deadLetter') value = value === null ? '' : queueOf(value as QueueRef).name
    options[wireName] = value
  }
  return options
}

function isRate(name: string): boolean {
  return name === 'rate' || name === 'keyRate'
}

// A rate as on the wire, where 0 messages mean no limit. @throws SluiceError INVALID_OPTION
function wireRate(kind: string, name: string, value: unknown): unknown {
  if (value === null) return { messages: 0 }
  if (typeof value !== 'object') return value
  const { messages } = value as { readonly messages?: unknown }
  const max = LIMITS.rateMessagesMax
  if (typeof messages === 'number' && Number.isInteger(messages) && messages >= 1 && messages <= max)
    return value
  throw new SluiceError(
    'INVALID_OPTION',
    `The ${kind} option \`${name}.messages\` is ${shown(messages)}; it must be a whole number from 1 to ${max}. \`${name}: null\` means no limit.`,
  )
}

// The limit of `waitForGroups` as on the wire, where 0 bytes mean that retention does not wait. @throws SluiceError INVALID_OPTION
function wireWait(value: unknown): unknown {
  if (value === null) return { bytes: 0 }
  const bytes = typeof value === 'object' ? (value as { readonly bytes?: unknown }).bytes : undefined
  if (typeof bytes === 'number' && Number.isSafeInteger(bytes) && bytes >= 1) return value
  const path = bytes === undefined ? 'waitForGroups' : 'waitForGroups.bytes'
  throw new SluiceError(
    'INVALID_OPTION',
    `The stream option \`${path}\` is ${shown(bytes ?? value)}; set \`waitForGroups: { bytes }\`, the size up to which the stream may grow while retention waits, 1 or more. \`waitForGroups: null\` means that retention does not wait.`,
  )
}

function onlyOptions(kind: string, named: unknown, prefix: string, known: readonly string[]): void {
  if (typeof named !== 'object' || named === null || Array.isArray(named)) {
    const what = prefix === '' ? `The options of a ${kind}` : `The ${kind} option \`${prefix.slice(0, -1)}\``
    throw new SluiceError('INVALID_OPTION', `${what} must be an object; it is ${shown(named)}.`)
  }
  for (const [name, value] of Object.entries(named)) {
    if (known.includes(name) || value === undefined) continue
    throw new SluiceError(
      'INVALID_OPTION',
      `There is no ${kind} option ${shown(prefix + name)}; there are ${known.map((name) => prefix + name).join(', ')}.`,
    )
  }
}

// Whether the value, which has a `messages` or `bytes` of 0, means that the option is not set.
function isUnset(name: string, value: unknown): boolean {
  if (isRate(name)) return (value as { readonly messages?: number }).messages === 0
  return name === 'waitForGroups' && (value as { readonly bytes?: number }).bytes === 0
}

/** The options of an answer in the form that a program reads. */
export function settingsOf(optionPaths: OptionPaths, options: object): unknown {
  const settings: Record<string, unknown> = {}
  for (const [wireName, [name, part]] of Object.entries(optionPaths)) {
    let value = (options as Record<string, unknown>)[wireName]
    if (value === undefined) continue
    if (name === 'deadLetter' && value === '') value = null
    if (part === undefined) settings[name] = value
    else ((settings[name] ??= {}) as Record<string, unknown>)[part] = value
  }
  for (const [name, value] of Object.entries(settings)) if (isUnset(name, value)) settings[name] = null
  return settings
}
