/**
 * `sluice publish`: publishes one message from an argument or a file, or one message for each line of stdin. The number
 * and the total size of the messages that are read from stdin and not yet confirmed are bounded.
 */
import { open } from 'node:fs/promises'
import type { MessageOptions, Receipt, Sluice } from '@sluice/client'
import { LIMITS, SluiceError, queueName, shown, sizeText } from '@sluice/protocol'
import type { Argv } from 'yargs'
import { command, type CommandBody } from './command.js'
import { withBroker } from './connection.js'
import { durationMs, given, headersFlag, numberFlag, timeFlag } from './flags.js'
import { UsageError } from './failure.js'
import { linesOf } from './lines.js'
import { OutputClosed, counted, grouped, notice, print, printJson } from './output.js'
import { headerFlag } from './selection.js'
import { onStop, signalExit, type StopSignal } from './signals.js'

export const BODY_TYPES = ['text', 'json', 'bytes'] as const
export type BodyType = (typeof BODY_TYPES)[number]

/** Maximum number and size of the messages that are published and not yet confirmed. */
const IN_FLIGHT_MESSAGES_MAX = 5_000
const IN_FLIGHT_BYTES_MAX = 16 << 20
const PROGRESS_MS = 200
/** Minimum number of messages for which the summary shows a rate. */
const RATE_MESSAGES_MIN = 1_000

interface PublishOptions extends MessageFlags {
  /** One of these is given. */
  readonly queue: string | undefined
  readonly stream: string | undefined
}

/** The body and the options of the messages that a command publishes. */
export interface MessageFlags {
  readonly body: string | undefined
  readonly file: string | undefined
  readonly bodyType: string
  readonly id: string | undefined
  readonly 'on-duplicate': string | undefined
  readonly key: string | undefined
  readonly priority: string | undefined
  readonly delay: string | undefined
  readonly at: string | undefined
  readonly ttl: string | undefined
  readonly header: readonly string[] | undefined
}

/** Options of a message. All lines of stdin share them, so --id is refused for lines. */
const MESSAGE_FLAGS = {
  id: 'Deduplication id: the same id is not accepted twice',
  'on-duplicate': 'keep or replace the waiting message with the same id [default: keep]',
  key: 'Ordering key: messages of one key are handled one after the other',
  priority: `0 to ${LIMITS.priorityMax}; a higher priority is delivered first [default: 0]`,
  delay: 'Deliver no earlier than this long from now, such as 30s or 2h',
  at: 'Deliver no earlier than this time: ISO text such as 2030-05-01T10:00Z, or milliseconds since 1970',
  ttl: 'Expire this long after it is due [default: the queue setting]',
} as const

/** Options that a stream keeps. */
const STREAM_FLAGS: readonly string[] = ['id', 'key']

export const publish = publishTo('queue')
export const publishToStream = publishTo('stream')

function publishTo(kind: 'queue' | 'stream'): CommandBody {
  return command<PublishOptions>({
    builder: (yargs) => {
      yargs
        .positional(kind, { type: 'string', demandOption: true, describe: `Name of the ${kind}` })
        .positional('body', {
          type: 'string',
          describe: 'The message; if omitted, each line of stdin is a message',
        })
      return messageFlags(yargs, kind === 'queue' ? undefined : STREAM_FLAGS).epilogue(
        'Prints the offset of a single message. For lines, prints their count on stderr. With --json, prints a receipt per message. ' +
          'Put a body that begins with a dash after --, as in: sluice publish orders -- -5',
      )
    },
    handler: async (options) => {
      const queue = queueName(options[kind])
      const bodyType = bodyTypeOf(options.bodyType)
      const record = recordOf(options)
      const { body, file } = options
      refuseTwoBodies(options)
      if (options.id !== undefined && body === undefined && file === undefined) {
        throw new UsageError(
          'Each line of stdin would be a message with the same --id, so only the first would be accepted.',
          'Publish the whole of stdin as one message with --file -, or omit the id.',
        )
      }
      const single = body === undefined && file === undefined ? undefined : await singleBody(options, '-')
      await withBroker(options, 'publish', async (sluice) => {
        const send = (message: unknown): Promise<Receipt> =>
          sluice.publish(queue, message, {
            ...record,
            ...(options.timeout === undefined
              ? {}
              : { timeout: durationMs(options.timeout, '--timeout', 1) }),
          })
        if (single === undefined) return publishLines(sluice, kind, queue, bodyType, options.json, send)
        const receipt = await send(single)
        if (options.json) await printJson({ [kind]: queue, ...receipt })
        else
          await print(
            `offset ${receipt.offset}${receipt.duplicate ? ' (duplicate)' : receipt.replaced === true ? ' (replaced another)' : ''}\n`,
          )
      })
    },
  })
}

/** Declares `--file`, `--body-type`, headers, and the named options of a message. */
export function messageFlags(yargs: Argv, names: readonly string[] = Object.keys(MESSAGE_FLAGS)): Argv {
  yargs
    .option('file', {
      type: 'string',
      requiresArg: true,
      describe: 'Publish a whole file as one message; - is stdin',
    })
    .option('body-type', {
      type: 'string',
      requiresArg: true,
      default: 'text',
      describe: 'text, json (parsed, and published as data) or bytes',
    })
  for (const [name, describe] of Object.entries(MESSAGE_FLAGS))
    if (names.includes(name)) yargs.option(name, { type: 'string', requiresArg: true, describe })
  return headerFlag(yargs, 'Header as name=value; can be given several times')
}

/** @throws UsageError */
function refuseTwoBodies({ body, file }: MessageFlags): void {
  if (body === undefined || file === undefined) return
  throw new UsageError('The body argument and --file are mutually exclusive.', 'Give one of them.')
}

/** The body of a single message; without a body or a file, that of the file `path`. @throws UsageError, SluiceError */
export async function singleBody(options: MessageFlags, path: string): Promise<unknown> {
  refuseTwoBodies(options)
  const bodyType = bodyTypeOf(options.bodyType)
  const { body, file = path } = options
  if (body !== undefined) return decode(Buffer.from(body), bodyType, 'The body')
  return decode(await wholeFile(file), bodyType, file === '-' ? 'stdin' : `The file ${file}`)
}

/** @throws UsageError, SluiceError INVALID_ARGUMENT */
export function recordOf(options: MessageFlags): MessageOptions {
  const { id, key, priority, delay, at, ttl, header } = options
  if (delay !== undefined && at !== undefined) {
    throw new UsageError('--delay and --at are mutually exclusive.', 'Give one of them.')
  }
  return given({
    id,
    onDuplicate: onDuplicateOf(options['on-duplicate'], id),
    key,
    priority: priority === undefined ? undefined : numberFlag(priority, '--priority', 0, LIMITS.priorityMax),
    delay: delay === undefined ? undefined : durationMs(delay, '--delay'),
    at: at === undefined ? undefined : timeFlag(at, '--at'),
    ttl: ttl === undefined ? undefined : durationMs(ttl, '--ttl'),
    headers: headersFlag(header),
  })
}

/** @throws UsageError */
export function onDuplicateOf(
  text: string | undefined,
  id: string | undefined,
): 'keep' | 'replace' | undefined {
  if (text === undefined) return undefined
  if (text !== 'keep' && text !== 'replace')
    throw new UsageError(
      `\`--on-duplicate\` is ${shown(text)}; it must be keep or replace.`,
      'Give one of the two.',
    )
  if (text === 'replace' && id === undefined)
    throw new UsageError('`--on-duplicate replace` needs --id to find the other message.', 'Add --id ID.')
  return text
}

async function publishLines(
  sluice: Sluice,
  kind: 'queue' | 'stream',
  queue: string,
  bodyType: BodyType,
  json: boolean,
  send: (message: unknown) => Promise<Receipt>,
): Promise<void> {
  if (process.stdin.isTTY) notice(`Each line is one message for ${queue}. Press Ctrl-D to finish.`)
  const beganMs = performance.now()
  const window = new PublishWindow(json ? (receipt) => printJson({ [kind]: queue, ...receipt }) : undefined)
  let stopped: StopSignal | undefined
  const forget = onStop((signal) => {
    stopped = signal
    process.stdin.destroy()
  })
  const progress = showProgress(window)
  let failure: Error | undefined
  let line = 0
  try {
    for await (const lines of linesOf(process.stdin, LIMITS.messageBytesMax)) {
      for (const bytes of lines) {
        line++
        const trimmed =
          bodyType === 'bytes' || bytes.at(-1) !== CARRIAGE_RETURN ? bytes : bytes.subarray(0, -1)
        if (bodyType === 'json' && isBlank(trimmed)) continue
        // Bytes are copied, because the stream reuses its buffer.
        const message = decode(
          bodyType === 'bytes' ? Uint8Array.from(trimmed) : trimmed,
          bodyType,
          `Line ${line}`,
        )
        if (!window.hasRoom) await window.room()
        if (window.failure !== undefined) break
        window.add(send(message), trimmed.length, line)
      }
      if (window.failure !== undefined || stopped !== undefined) break
    }
  } catch (error) {
    // Ctrl-C destroys stdin, and the loop then throws an error, which is not a failure.
    if (stopped === undefined) failure = error as Error
  }
  // An open stdin would keep the process alive.
  process.stdin.destroy()
  await window.done()
  progress()
  forget()
  const elapsedMs = performance.now() - beganMs
  failure ??= window.failure?.error
  // If no message was published, no answer of the broker has shown whether the queue exists.
  if (failure === undefined && stopped === undefined && window.confirmed === 0)
    failure = await missing(sluice, queue)
  // A closed stdout is not a failure: no error follows the summary.
  notice(summary(window, queue, elapsedMs, failure !== undefined && !(failure instanceof OutputClosed)))
  if (failure !== undefined) throw failure
  if (stopped !== undefined) process.exitCode = signalExit(stopped)
}

async function missing(sluice: Sluice, queue: string): Promise<Error | undefined> {
  try {
    await sluice.queues.get(queue)
    return undefined
  } catch (error) {
    // A stream can be published to as well.
    return error instanceof SluiceError && error.code === 'WRONG_KIND' ? undefined : (error as Error)
  }
}

const CARRIAGE_RETURN = 13

function isBlank(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 32 || byte === 9)
}

/** The unconfirmed publishes: bounded in number and size, and reported in order. */
class PublishWindow {
  confirmed = 0
  /** Number of duplicates among the confirmed messages. */
  duplicates = 0
  firstOffset: number | undefined
  lastOffset: number | undefined
  /** The first failed publish; later ones can still succeed. */
  failure: { readonly error: Error; readonly line: number } | undefined
  readonly #report: ((receipt: Receipt) => Promise<void>) | undefined
  #messages = 0
  #bytes = 0
  #tail: Promise<void> = Promise.resolve()
  #roomWaiter: (() => void) | undefined

  constructor(report: ((receipt: Receipt) => Promise<void>) | undefined) {
    this.#report = report
  }

  get hasRoom(): boolean {
    return this.#messages < IN_FLIGHT_MESSAGES_MAX && this.#bytes < IN_FLIGHT_BYTES_MAX
  }

  /** Resolves when there is room, or a publish has failed. */
  room(): Promise<void> {
    return new Promise((resolve) => {
      this.#roomWaiter = resolve
    })
  }

  add(sent: Promise<Receipt>, bytes: number, line: number): void {
    this.#messages++
    this.#bytes += bytes
    const outcome = sent.then(
      (receipt) => ({ receipt }),
      (error: Error) => ({ error }),
    )
    this.#tail = this.#tail.then(async () => {
      const result = await outcome
      try {
        if ('error' in result) throw result.error
        this.confirmed++
        if (result.receipt.duplicate) this.duplicates++
        this.firstOffset ??= result.receipt.offset
        this.lastOffset = result.receipt.offset
        await this.#report?.(result.receipt)
      } catch (error) {
        this.failure ??= { error: error as Error, line }
      }
      this.#messages--
      this.#bytes -= bytes
      if (this.hasRoom || this.failure !== undefined) {
        const waiter = this.#roomWaiter
        this.#roomWaiter = undefined
        waiter?.()
      }
    })
  }

  /** Resolves when each publish has been answered. */
  done(): Promise<void> {
    return this.#tail
  }
}

function summary(window: PublishWindow, queue: string, elapsedMs: number, failed: boolean): string {
  const { confirmed, duplicates, firstOffset, lastOffset, failure } = window
  const range =
    firstOffset === undefined
      ? ''
      : firstOffset === lastOffset
        ? `, offset ${firstOffset}`
        : `, offsets ${firstOffset} to ${lastOffset}`
  const rate =
    confirmed < RATE_MESSAGES_MIN
      ? ''
      : `, ${grouped(Math.round((confirmed / Math.max(1, elapsedMs)) * 1000))} per second`
  const known = duplicates === 0 ? '' : `, ${counted(duplicates, 'duplicate')}`
  const text = `Published ${counted(confirmed, 'message')} to ${queue}${range}${known}${rate}.`
  if (!failed) return text
  return failure === undefined
    ? `${text} Then the command failed:`
    : `${text} The first failure is in line ${grouped(failure.line)}:`
}

/** Shows a progress line, on a terminal only. Returns a function that removes it. */
function showProgress(window: PublishWindow): () => void {
  if (!process.stderr.isTTY || process.stdin.isTTY) return () => {}
  const timer = setInterval(() => {
    process.stderr.write(`\r${counted(window.confirmed, 'message')} published`)
  }, PROGRESS_MS)
  return () => {
    clearInterval(timer)
    process.stderr.write('\r\u001B[K')
  }
}

export async function wholeFile(path: string): Promise<Uint8Array> {
  const handle = path === '-' ? undefined : await open(path)
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of (handle?.createReadStream() ?? process.stdin) as AsyncIterable<Uint8Array>) {
    chunks.push(chunk)
    bytes += chunk.length
    if (bytes > LIMITS.messageBytesMax) {
      throw new SluiceError(
        'MESSAGE_TOO_LARGE',
        `${path === '-' ? 'stdin' : `The file ${path}`} is larger than ${sizeText(LIMITS.messageBytesMax)}, the limit of a message.`,
      )
    }
  }
  return Buffer.concat(chunks)
}

// A byte order mark is kept as part of the text.
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** @throws SluiceError INVALID_BODY, which does not quote the body */
export function decode(bytes: Uint8Array, bodyType: BodyType, what: string): unknown {
  if (bodyType === 'bytes') return bytes
  let text: string
  try {
    text = utf8.decode(bytes)
  } catch (cause) {
    throw new SluiceError('INVALID_BODY', `${what} is not UTF-8; --body-type bytes publishes it as is.`, {
      cause,
    })
  }
  if (bodyType === 'text') return text
  const json = text.replace(/^\uFEFF/, '')
  let body: unknown
  try {
    body = JSON.parse(json)
  } catch (cause) {
    throw new SluiceError('INVALID_BODY', `${what} is not JSON: ${(cause as Error).message.slice(0, 120)}.`, {
      cause,
    })
  }
  const inexact = inexactNumber(json)
  if (inexact === undefined) return body
  throw new SluiceError(
    'INVALID_BODY',
    `${what} has the number ${shown(inexact)}, which JSON.parse would change; write it as a string, or publish the JSON with --body-type text.`,
  )
}

/** Matches the start of a string, or a number, in valid JSON. */
const JSON_TOKEN = /"|-?\d[\d.eE+-]*/g

/** The first number that JSON.parse would change: an integer beyond 2^53, or a number that overflows to infinity. */
function inexactNumber(json: string): string | undefined {
  JSON_TOKEN.lastIndex = 0
  for (let match = JSON_TOKEN.exec(json); match !== null; match = JSON_TOKEN.exec(json)) {
    const [token] = match
    if (token === '"') {
      JSON_TOKEN.lastIndex = endOfString(json, match.index)
      continue
    }
    const value = Number(token)
    if (/^-?\d+$/.test(token) ? !Number.isSafeInteger(value) : !Number.isFinite(value)) return token
  }
  return undefined
}

/** The index after the string whose opening quote is at `start`. */
function endOfString(json: string, start: number): number {
  for (let at = start + 1; at < json.length; at++) {
    if (json[at] === '"') return at + 1
    if (json[at] === '\\') at++
  }
  return json.length
}

export function bodyTypeOf(text: string): BodyType {
  const found = BODY_TYPES.find((type) => type === text)
  if (found !== undefined) return found
  throw new UsageError(
    `--body-type is ${JSON.stringify(text)}; it must be one of ${BODY_TYPES.join(', ')}.`,
    'Give one of these.',
  )
}
