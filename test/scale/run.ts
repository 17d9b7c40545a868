/** Runs scenarios by name, or all of them: `node test/dist/scale/run.js [--messages N] [NAME …]`. */
import { whole } from './scenario.js'
import { SCENARIOS } from './scenarios.js'

const MESSAGES = 1_000_000

async function main(args: readonly string[]): Promise<void> {
  const at = args.indexOf('--messages')
  const messages = at === -1 ? MESSAGES : Number(args[at + 1])
  const named = args.filter((_, index) => at === -1 || (index !== at && index !== at + 1))
  const names = named.length === 0 ? Object.keys(SCENARIOS) : named
  const unknown = names.find((name) => SCENARIOS[name] === undefined)
  if (unknown !== undefined || !Number.isSafeInteger(messages) || messages < 1) {
    process.stderr.write(`usage: run.js [--messages N] [${Object.keys(SCENARIOS).join(' | ')} …]\n`)
    process.exitCode = 2
    return
  }
  for (const name of names) {
    process.stdout.write(`${name}, ${whole(messages)} messages\n`)
    for (const { what, value, isMet } of await SCENARIOS[name]!(messages)) {
      process.stdout.write(`  ${isMet ? 'ok  ' : 'MISS'}  ${what}: ${value}\n`)
      if (!isMet) process.exitCode = 1
    }
  }
}

await main(process.argv.slice(2))
