/**
 * A worker that kills its own process when it starts to handle a certain message. It handles and reports all other
 * messages. Its argument contains the options of the consumer as JSON.
 */
import { connect, type Message } from '@sluice/client'
import { writeSync } from 'node:fs'

export type Style = 'handler' | 'iterator' | 'pull' | 'batch'

export interface PoisonArguments {
  readonly url: string
  readonly queue: string
  /** The body of the message that kills the worker. */
  readonly poison: string
  readonly style: Style
  readonly concurrency: number
  readonly prefetch: number
  /** Time for which a message is handled, in ms. */
  readonly handleMs: number
}

// The worker ends with its parent, even if the test did not stop it.
process.stdin.on('end', () => process.exit(1)).resume()

const { url, queue, poison, style, concurrency, prefetch, handleMs } = JSON.parse(
  process.argv[2]!,
) as PoisonArguments
const sluice = await connect(url, { name: `poison-${style}` })

async function handle(message: Message): Promise<void> {
  if (message.body === poison) process.kill(process.pid, 'SIGKILL')
  if (handleMs > 0) await new Promise((resolve) => setTimeout(resolve, handleMs))
  const { offset, attempt } = message
  writeSync(1, `${JSON.stringify({ offset, attempt })}\n`)
}

if (style === 'handler') {
  sluice.consume(queue, { concurrency, prefetch }, handle)
} else if (style === 'batch') {
  sluice.consume(queue, { concurrency, prefetch, batch: { size: 10, wait: 20 } }, async (messages) => {
    for (const message of messages) await handle(message)
  })
} else if (style === 'iterator') {
  for await (const message of sluice.messages(queue, { prefetch })) {
    await handle(message)
    void message.ack()
  }
} else {
  for (;;) {
    const messages = await sluice.pull(queue, { max: prefetch, wait: '2s' })
    await Promise.all(
      messages.map(async (message) => {
        await handle(message)
        void message.ack()
      }),
    )
  }
}
