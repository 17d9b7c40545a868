/**
 * The store: orders pass through payment, stock and mail. Each step is a queue with its own worker processes. Meanwhile
 * cards are declined, orders flood in, and a worker crashes. The run prints what happens, and checks at the end that
 * every order was paid, picked and mailed once.
 *
 * Option: `--flood <n>`, the minimum number of orders in the flood. Exit code: 0 for success, 1 for failure, 2 for
 * wrong options. The run leaves no processes behind. It removes its files, except after a failure: then it keeps the
 * directory with the logs and the books, and prints its path.
 */
import { parseArgs } from 'node:util'
import { perform } from '../demo/stage.js'
import { judge, table } from './judgement.js'
import { Lines } from './lines.js'
import { Store } from './scenario.js'

const RUN_MS_MAX = 60_000
const FLOOD_DEFAULT = 200
const FLOOD_MIN = 20
const FLOOD_MAX = 800

process.exitCode = await main()

async function main(): Promise<number> {
  const flood = floodWanted()
  if (flood === undefined) return 2
  const lines = new Lines(process.stdout)
  return perform('store', RUN_MS_MAX, (stage) => {
    const store = new Store({ ...stage, flood, lines })
    return {
      async play() {
        const evidence = await store.play()
        lines.plain(`\n${table(evidence.queues)}\n`)
        const checks = judge(evidence)
        for (const { text, isGood } of checks) lines.check(text, isGood)
        const failed = checks.filter(({ isGood }) => !isGood)
        lines.plain(`\n${checks.length - failed.length} of ${checks.length} checks passed`)
        return failed.map(({ text }) => `Failed check: ${text}.`)
      },
      whereabouts: () => store.whereabouts,
      clear: () => {},
      close: () => store.close(),
    }
  })
}

function floodWanted(): number | undefined {
  try {
    const { values } = parseArgs({ options: { flood: { type: 'string', default: String(FLOOD_DEFAULT) } } })
    const count = Number(values.flood)
    if (Number.isInteger(count) && count >= FLOOD_MIN && count <= FLOOD_MAX) return count
    console.error(`--flood is ${values.flood}; it must be a whole number from ${FLOOD_MIN} to ${FLOOD_MAX}.`)
  } catch (error) {
    console.error(
      `${(error as Error).message}. The only option is --flood N, from ${FLOOD_MIN} to ${FLOOD_MAX}.`,
    )
  }
  return undefined
}
