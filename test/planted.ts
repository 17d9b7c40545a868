/** The search for a planted defect, which the tests of all planted defects share. */
import { IS_LONG } from './amount.js'

/** How a kind of planted defect is searched for. */
export interface Search {
  readonly seedsMax: number
  /** For each defect that the first seed does not find: a seed that finds it. An outdated entry only costs time. */
  readonly knownSeeds: Readonly<Record<string, number>>
}

/**
 * Runs seeds until one finds the defect `name`, and returns its error; undefined if no seed finds the defect. The known seed
 * comes first, except in the long mode. `run` returns the error of a seed that finds the defect.
 */
export async function findDefect(
  name: string,
  { seedsMax, knownSeeds }: Search,
  run: (seed: number) => Promise<unknown>,
): Promise<unknown> {
  const seeds = Array.from({ length: seedsMax }, (_, i) => i + 1)
  const known = knownSeeds[name]
  if (!IS_LONG && known !== undefined) seeds.unshift(known)
  for (const seed of seeds) {
    const error = await run(seed)
    if (error === undefined) continue
    if (IS_LONG || seed !== (known ?? 1)) console.log(`  ${JSON.stringify(name)}: ${seed},`)
    return error
  }
  return undefined
}
