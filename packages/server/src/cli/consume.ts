/**
 * `sluice consume`: prints messages, and acknowledges each message after it was written. Messages that were not written
 * return to the queue when the command is interrupted or the reader closes stdout. A message that cannot be decoded is
 * retried, like a message whose handler throws. If it were held, it would use the credit of a message that can be
 * printed. If it were released, it would be delivered again at once.
 */
import type { Message, Sluice } from '@sluice/client'
import { LIMITS, SluiceError, Timer, addressName, isGroupName } from '@sluice/protocol'
import { onAddress } from './address.js'
import { bodyFields, bodyLine } from './body.js'
import { command } from './command.js'
import { withBroker } from './connection.js'
import { countFlag, durationMs, given } from './flags.js'
import { AdvisedError, EXIT, UsageError, failureOf } from './failure.js'
import { counted, notice, outputError } from './output.js'
import { onStop, signalExit, type StopSignal } from './signals.js'

const PREFETCH = 256
/** Maximum number and total size of the messages held with --no-ack. The broker leases at most twice this size. */
const HELD_MESSAGES_MAX = LIMITS.creditMessagesMax
const HELD_BYTES_MAX = 128 << 20

interface ConsumeOptions {
  readonly queue: string
  readonly count: string | undefined
  readonly ack: boolean
  readonly wait: string | undefined
  readonly processingTimeout: string | undefined
  readonly replyWith: string | undefined
}

export const consume = command<ConsumeOptions>({
  builder: (yargs) =>
    onAddress(yargs)
      .option('count', { type: 'string', requiresArg: true, describe: 'Exit after N messages' })
      .option('wait', {
        type: 'string',
        requiresArg: true,
        describe:
          'Exit when no message arrives for this long, such as 2s; the exit code is 4 if fewer than --count messages arrived [default: never]',
      })
      .option('processing-timeout', {
        type: 'string',
        requiresArg: true,
        describe: 'Processing timeout of a message, such as 5m [default: the queue setting]',
      })
      .option('ack', {
        type: 'boolean',
        default: true,
        describe: 'Acknowledge printed messages; --no-ack releases them at the end',
      })
      .option('reply-with', {
        type: 'string',
        requiresArg: true,
        describe: 'Reply to each printed request with this text',
      })
      .describe('json', 'Print each message with its metadata, as a line of JSON')
      .epilogue(
        'Text is printed as is, data as JSON, bytes raw; with --json bytes are base64. Ctrl-C releases messages that were ' +
          'not printed. A message that cannot be decoded is retried later, and the exit code is then 1. ' +
          'Output written to a pipe counts as printed: prefer --count 1 to `| head -1`. ' +
          'Additional exit codes: 4 when --wait ended before --count messages had arrived, 130 after ' +
          'SIGINT (Ctrl-C), 143 after SIGTERM.',
      ),
  handler: async (options) => {
    const queue = addressName(options.queue)
    const count = options.count === undefined ? Infinity : countFlag(options.count, '--count', 1)
    const waitMs = options.wait === undefined ? undefined : durationMs(options.wait, '--wait')
    const { processingTimeout: timeout, ack, json, replyWith } = options
    if (replyWith !== undefined && !ack) {
      throw new UsageError(
        '--reply-with and --no-ack are mutually exclusive.',
        'Omit --no-ack: a request that is released is delivered again, and another reply to it is ignored.',
      )
    }
    const processingTimeout =
      timeout === undefined
        ? undefined
        : durationMs(timeout, '--processing-timeout', LIMITS.processingTimeoutMsMin)
    await withBroker(options, 'consume', (sluice) =>
      consumeAll(sluice, { queue, count, waitMs, processingTimeout, ack, json, replyWith }),
    )
  },
})

interface ConsumeTask {
  readonly queue: string
  readonly count: number
  readonly waitMs: number | undefined
  readonly processingTimeout: number | undefined
  readonly ack: boolean
  readonly json: boolean
  readonly replyWith: string | undefined
}

async function consumeAll(sluice: Sluice, task: ConsumeTask): Promise<void> {
  const { queue, count, waitMs, processingTimeout, ack, json, replyWith } = task
  const stream = sluice.messages(queue, {
    prefetch: Math.min(count, ack ? PREFETCH : HELD_MESSAGES_MAX),
    ...(ack ? {} : { prefetchBytes: HELD_BYTES_MAX * 2 }),
    // A mistyped queue name must fail at once instead of waiting for the queue.
    missing: 'fail',
    ...given({ processingTimeout }),
  })
  const end = (): void => {
    stream.return?.().catch(() => {})
  }
  let stopped: StopSignal | undefined
  const forget = onStop((signal) => {
    stopped = signal
    end()
  })
  if (process.stdout.isTTY && count === Infinity && waitMs === undefined) {
    notice(`Printing messages of ${queue} as they arrive. Press Ctrl-C to stop.`)
  }
  const printer = new Printer(end, ack, replyWith)
  let idle: Timer | undefined
  let isOverdue = false
  let taken = 0
  let unreadable = 0
  try {
    if (waitMs !== undefined) {
      idle = await idleTimer(sluice, queue, waitMs, printer, () => {
        isOverdue = true
        end()
      })
    }
    for await (const message of stream) {
      const text = rendered(message, json, ack)
      if (text === undefined) unreadable++
      else {
        // Messages that cannot be decoded do not restart the timer. In a queue without a back-off, a message that is
        // retried endlessly would prevent the command from ending.
        idle?.restart()
        taken++
        printer.write(message, text)
        if (printer.isFull) await printer.room()
      }
      const held = ack ? 0 : taken + unreadable
      if (printer.failure !== undefined || taken === count || held === count) break
      if (held === HELD_MESSAGES_MAX || (!ack && printer.bytes > HELD_BYTES_MAX)) {
        notice(`Stopped after ${counted(held, 'message')}: the limit of unacknowledged messages is reached.`)
        break
      }
    }
  } finally {
    idle?.cancel()
    await printer.done()
    forget()
  }
  checkAll(printer, unreadable, queue)
  if (stopped !== undefined) process.exitCode = signalExit(stopped)
  else if (isOverdue && count !== Infinity && taken < count) {
    notice(`Consumed ${counted(taken, 'message')} of ${count}: no more arrived within --wait.`)
    process.exitCode = EXIT.notFound
  }
}

/** @throws Error when a message could not be printed or acknowledged */
function checkAll(printer: Printer, unreadable: number, queue: string): void {
  if (printer.failure !== undefined) throw printer.failure
  if (printer.unacknowledged > 0) {
    const were = counted(printer.unacknowledged, 'message')
    throw new SluiceError('LEASE_LOST', `${were} could not be acknowledged: ${printer.reason}`)
  }
  if (unreadable === 0) return
  throw new AdvisedError(
    'INVALID_BODY',
    `${counted(unreadable, 'attempt')} to decode a message failed.`,
    `Show the messages with \`sluice peek ${queue}\`. Correct their publisher, or remove them with \`sluice cancel\`.`,
  )
}

/** Minimum of --wait: a ready message can take this long to arrive. */
const WAIT_MS_MIN = 100

/**
 * The timer of --wait. It starts after the broker has accepted the subscription. The answer to `get` shows that the
 * broker has, because requests are answered in order. The timer does not expire while stdout is blocked.
 */
async function idleTimer(
  sluice: Sluice,
  queue: string,
  waitMs: number,
  printer: Printer,
  end: () => void,
): Promise<Timer> {
  await (isGroupName(queue) ? sluice.groups.get(queue) : sluice.queues.get(queue))
  const timer = new Timer(
    () => {
      if (printer.isBusy) timer.restart()
      else end()
    },
    Math.max(waitMs, WAIT_MS_MIN),
  )
  return timer
}

/** Writes messages to stdout. Replies to those that were written, with `replyWith`, and acknowledges them. */
class Printer {
  bytes = 0
  unacknowledged = 0
  reason = ''
  failure: Error | undefined
  readonly #end: () => void
  readonly #ack: boolean
  readonly #replyWith: string | undefined
  #open = 0
  #waiters: (() => void)[] = []

  constructor(end: () => void, ack: boolean, replyWith: string | undefined) {
    this.#end = end
    this.#ack = ack
    this.#replyWith = replyWith
  }

  get isFull(): boolean {
    return process.stdout.writableNeedDrain && this.failure === undefined
  }

  /** Whether some messages are not yet written and acknowledged. If so, the broker may be waiting for credit. */
  get isBusy(): boolean {
    return this.#open > 0
  }

  write(message: Message, text: string | Uint8Array): void {
    this.bytes += typeof text === 'string' ? Buffer.byteLength(text) : text.length
    this.#open++
    process.stdout.write(text, (error) => {
      if (error) {
        this.failure ??= outputError(error)
        this.#end()
        this.#closed()
      } else if (this.#ack) this.#acknowledge(message)
      else this.#closed()
    })
  }

  #acknowledge(message: Message): void {
    const done = this.#replyWith === undefined ? message.ack() : reply(message, this.#replyWith)
    done.then(
      () => this.#closed(),
      (error: unknown) => {
        this.unacknowledged++
        this.reason = failureOf(error).what
        this.#closed()
      },
    )
  }

  #closed(): void {
    this.#open--
    if (this.isFull && this.#open > 0) return
    const waiters = this.#waiters
    this.#waiters = []
    for (const resolve of waiters) resolve()
  }

  /** Resolves when stdout accepts more output, or has failed. */
  async room(): Promise<void> {
    while (this.isFull && this.#open > 0) await this.#change()
  }

  /** Resolves when each message has been written and acknowledged, or the attempt has failed. */
  async done(): Promise<void> {
    while (this.#open > 0) await this.#change()
  }

  #change(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiters.push(resolve)
    })
  }
}

// A message that is not a request has no reply. A request whose sender has stopped waiting is acknowledged too.
async function reply(message: Message, text: string): Promise<void> {
  if (message.isRequest) await message.reply(text)
  await message.ack()
}

/**
 * Returns a message as a line, or undefined when its body cannot be decoded. With `isRetried`, a message that cannot be
 * decoded is retried.
 */
function rendered(message: Message, json: boolean, isRetried: boolean): string | Uint8Array | undefined {
  let body: unknown
  try {
    body = message.body
  } catch (error) {
    const { what } = failureOf(error)
    notice(`Message ${message.offset} of ${message.queue}: ${what}`)
    // If the retry fails, the lease is lost, and the message has already returned to the queue.
    if (isRetried) message.retry({ reason: what }).catch(() => {})
    return undefined
  }
  return json ? `${JSON.stringify(document(message, body))}\n` : bodyLine(body)
}

function document(message: Message, body: unknown): object {
  const { queue, offset, id, key, priority, attempt, redelivered, publishedAt, headers } = message
  return {
    queue,
    offset,
    id,
    key,
    priority,
    attempt,
    redelivered,
    publishedAt,
    headers,
    ...bodyFields(body),
  }
}
